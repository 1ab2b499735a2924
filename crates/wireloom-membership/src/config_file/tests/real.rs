//! Real files in a temporary directory.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::super::{ReadError, TomlFile, Watch};

/// Receives every version of a file: its text, or why it cannot be read.
fn versions(path: &Path) -> Receiver<Result<String, String>> {
    let (sender, receiver) = channel();
    let mut watch = Watch::new(path.to_owned());
    thread::spawn(move || {
        loop {
            let version = watch.next_version();
            let version = version.map(|file| file.text().to_owned()).map_err(|error| error.to_string());
            if sender.send(version).is_err() {
                return;
            }
        }
    });
    receiver
}

#[track_caller]
fn next(versions: &Receiver<Result<String, String>>) -> Result<String, String> {
    versions.recv_timeout(Duration::from_secs(10)).unwrap()
}

#[track_caller]
fn expect(versions: &Receiver<Result<String, String>>, text: &str) {
    assert_eq!(next(versions).as_deref(), Ok(text));
}

/// Nothing new comes for this long.
#[track_caller]
fn quiet(versions: &Receiver<Result<String, String>>, time: Duration) {
    assert_eq!(versions.recv_timeout(time), Err(RecvTimeoutError::Timeout));
}

/// Asserts that one of five attempts takes less than `time`. The poll never does, and a busy machine does not always.
#[track_caller]
fn assert_sooner(time: Duration, mut attempt: impl FnMut()) {
    let mut took = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        attempt();
        took.push(begun.elapsed());
        if begun.elapsed() < time {
            return;
        }
    }
    panic!("less than {time:?} was expected: {took:?}");
}

#[test]
fn writing_replacing_and_removing_the_file_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    let versions = versions(&path);
    let absent = format!("cannot read {}: No such file or directory (os error 2)", path.display());
    assert_eq!(next(&versions), Err(absent.clone()));
    // Neither the poll nor the settling is needed.
    assert_sooner(Duration::from_millis(900), || {
        fs::write(&path, "one").unwrap();
        expect(&versions, "one");
        fs::write(directory.path().join("mesh.toml.new"), "two").unwrap();
        fs::rename(directory.path().join("mesh.toml.new"), &path).unwrap();
        expect(&versions, "two");
        fs::write(&path, "three").unwrap();
        expect(&versions, "three");
    });
    fs::remove_file(&path).unwrap();
    assert_eq!(next(&versions), Err(absent));
}

#[test]
fn a_writer_that_pauses_is_waited_for_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    fs::write(&path, "old").unwrap();
    let versions = versions(&path);
    expect(&versions, "old");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"half").unwrap();
    // Other files come and go meanwhile.
    fs::write(directory.path().join("other.new"), "x").unwrap();
    fs::rename(directory.path().join("other.new"), directory.path().join("other")).unwrap();
    quiet(&versions, Duration::from_secs(4));
    let error = next(&versions).unwrap_err();
    assert!(
        error.contains("mesh.toml for more than 5 s") && error.contains("rename it into place"),
        "{error}"
    );
    writer.write_all(b" and half").unwrap();
    quiet(&versions, Duration::from_secs(3));
    drop(writer);
    expect(&versions, "half and half");
}

#[test]
fn a_new_file_is_waited_for_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    let versions = versions(&path);
    next(&versions).unwrap_err();
    let mut writer = File::create(&path).unwrap();
    quiet(&versions, Duration::from_millis(1500));
    writer.write_all(b"new").unwrap();
    quiet(&versions, Duration::from_millis(1500));
    drop(writer);
    expect(&versions, "new");
}

#[test]
fn a_file_that_takes_the_place_of_one_being_written_ends_the_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    fs::write(&path, "old").unwrap();
    let versions = versions(&path);
    expect(&versions, "old");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"half").unwrap();
    quiet(&versions, Duration::from_millis(200));
    fs::write(directory.path().join("new"), "new").unwrap();
    fs::rename(directory.path().join("new"), &path).unwrap();
    // The old writer's file has no name any more; what becomes of it does not matter.
    writer.write_all(b" more").unwrap();
    expect(&versions, "new");
    drop(writer);
    quiet(&versions, Duration::from_millis(200));
    fs::write(&path, "newer").unwrap();
    expect(&versions, "newer");
}

#[test]
fn the_directory_may_be_made_later() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("etc/mesh.toml");
    let versions = versions(&path);
    next(&versions).unwrap_err();
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, "late").unwrap();
    expect(&versions, "late");
    fs::write(&path, "later").unwrap();
    expect(&versions, "later");
}

#[test]
fn other_files_and_rewriting_the_same_content_do_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    fs::write(&path, "same").unwrap();
    let versions = versions(&path);
    expect(&versions, "same");
    fs::write(directory.path().join("other"), "x").unwrap();
    fs::write(&path, "same").unwrap();
    quiet(&versions, Duration::from_millis(200));
    fs::write(&path, "different").unwrap();
    expect(&versions, "different");
}

/// As the kubelet does it: all files of a ConfigMap are reached by one link, which is replaced.
#[test]
fn a_config_map_is_replaced_by_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let fill = |name: &str, text: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("mesh.toml"), text).unwrap();
    };
    fill("..1", "one");
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/mesh.toml", root.join("mesh.toml")).unwrap();
    let versions = versions(&root.join("mesh.toml"));
    expect(&versions, "one");
    let mut version = 1;
    // The poll is not needed.
    assert_sooner(Duration::from_millis(1500), || {
        version += 1;
        let (directory, text) = (format!("..{version}"), version.to_string());
        fill(&directory, &text);
        symlink(&directory, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        expect(&versions, &text);
    });
}

#[test]
fn a_file_behind_a_link_is_listened_to() {
    let directory = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let target = target.path().join("real.toml");
    fs::write(&target, "old").unwrap();
    let path = directory.path().join("mesh.toml");
    symlink(&target, &path).unwrap();
    let versions = versions(&path);
    expect(&versions, "old");
    let mut writer = File::create(&target).unwrap();
    writer.write_all(b"half").unwrap();
    // A rename beside the link does not finish the file that it leads to.
    fs::write(directory.path().join("agent.toml.new"), "").unwrap();
    fs::rename(directory.path().join("agent.toml.new"), directory.path().join("agent.toml")).unwrap();
    quiet(&versions, Duration::from_millis(2500));
    drop(writer);
    expect(&versions, "half");
}

/// A file that is in somebody's hands when the watch begins is not read before it has settled.
#[test]
fn a_file_that_is_written_while_the_watch_begins_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"half").unwrap();
    let versions = versions(&path);
    quiet(&versions, Duration::from_millis(300));
    writer.write_all(b" and half").unwrap();
    quiet(&versions, Duration::from_millis(1500));
    drop(writer);
    expect(&versions, "half and half");
}

/// Makes something at a path.
type Make<'a> = &'a dyn Fn(&Path);

/// What is not a file is refused without opening it, and watching goes on.
#[test]
fn what_is_not_a_file_is_refused_until_a_file_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    fs::write(&path, "file").unwrap();
    let versions = versions(&path);
    expect(&versions, "file");
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases: [(&str, Make<'_>); 6] = [
        ("is a directory, not a file", &|path| fs::create_dir(path).unwrap()),
        ("is a FIFO, not a file", &|path| mkfifo(path, Mode::S_IRWXU).unwrap()),
        ("is a socket, not a file", &|path| symlink(&socket, path).unwrap()),
        ("is a character device, not a file", &|path| symlink("/dev/zero", path).unwrap()),
        ("Too many levels of symbolic links", &|path| symlink(path, path).unwrap()),
        ("has 67108865 bytes, and more than 64 MiB are not read", &|path| {
            File::create(path).unwrap().set_len((64 << 20) + 1).unwrap();
        }),
    ];
    for (words, make) in cases {
        fs::remove_file(&path).unwrap();
        assert!(next(&versions).unwrap_err().contains("No such file"));
        make(&path);
        let error = next(&versions).unwrap_err();
        assert!(error.contains(words) && error.contains("mesh.toml"), "{error}");
        // At the start, too.
        assert_eq!(TomlFile::read(&path).unwrap_err().to_string(), error);
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        assert!(next(&versions).unwrap_err().contains("No such file"));
        fs::write(&path, words).unwrap();
        expect(&versions, words);
    }
}

#[test]
fn text_in_another_encoding_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    fs::write(&path, b"name = \"M\xfcnchen\"").unwrap();
    assert_eq!(TomlFile::read(&path).unwrap_err(), ReadError::NotText { path });
}

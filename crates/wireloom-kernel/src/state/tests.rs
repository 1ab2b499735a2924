//! The state directory: what is written is read back, and damage is never obeyed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use wireloom_plan::{
    cluster::{Cluster, Node},
    sysctl::UnderlaySysctl,
};
use wireloom_types::PublicKey;

use super::{file::with_suffix, sysctls::SavedSysctls, *};

/// Where every record is.
fn paths(state: &StateDir) -> Vec<PathBuf> {
    ALL.iter().map(|record| state.path().join(record.file())).collect()
}

#[test]
fn what_a_killed_writer_leaves_is_replaced_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wg0.json");
    let left = || fs::write(directory.path().join("wg0.json.unfinished"), "half").unwrap();
    left();
    write_atomically(&path, b"whole").unwrap();
    let names = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names().collect::<Vec<_>>(), ["wg0.json"]);
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    left();
    remove_written(&path).unwrap();
    assert_eq!(names().count(), 0);
}

#[test]
fn a_directory_that_others_can_write_to_holds_no_state() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path().join("state"));
    fs::create_dir(state.path()).unwrap();
    for mode in [0o777, 0o775, 0o1777] {
        fs::set_permissions(state.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = state.lock(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let advice = format!("run `chmod go-w {}`", state.path().display());
        assert!(error.to_string().contains(&advice), "{error}");
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(state.lock(Duration::ZERO).unwrap().is_some());
}

#[test]
fn sysctls_are_read_back_as_saved_and_the_file_goes_with_the_last_one() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path().join("deep/er"));
    assert_eq!(state.saved_sysctls().unwrap(), SavedSysctls::new());
    let saved = SavedSysctls::from([("eth0.7".to_owned(), BTreeMap::from([(UnderlaySysctl::RpFilter, 1)]))]);
    state.save_sysctls(&saved).unwrap();
    assert_eq!(state.saved_sysctls().unwrap(), saved);
    state.save_sysctls(&SavedSysctls::new()).unwrap();
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn a_mesh_is_read_back_as_saved() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path().join("deep/er"));
    assert_eq!(state.mesh().unwrap(), None);
    let node = Node {
        public_key: Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=".parse().unwrap()),
        endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
        endpoint_name: Some("vpn.example.org:51820".parse().unwrap()),
        other_endpoints: Vec::new(),
        addresses: ["192.0.2.1".parse().unwrap()].into(),
        workloads: ["10.161.1.0/24".parse().unwrap(), "fd00::1/128".parse().unwrap()].into(),
        ..Node::default()
    };
    let nodes = BTreeMap::from([("a".to_owned(), node), ("b\"\n".to_owned(), Node::default())]);
    let mesh = Cluster {
        pools: ["10.161.0.0/16".parse().unwrap()].into(),
        nodes,
        preshared_key_file: Some("/etc/wireloom/mesh.psk".into()),
    };
    state.set_mesh(&mesh).unwrap();
    assert_eq!(state.mesh().unwrap(), Some(mesh));
}

/// In words, and what makes it at a path.
type Damage = (&'static str, fn(&Path));

/// What an agent, a crash or a stranger may leave in a record's place.
const DAMAGES: [Damage; 8] = [
    ("empty", |path| fs::write(path, "").unwrap()),
    ("cut short", |path| fs::write(path, r#"{"interface":"wg"#).unwrap()),
    ("binary", |path| fs::write(path, [0xff; 100]).unwrap()),
    ("of another shape", |path| fs::write(path, "[[ ]]").unwrap()),
    ("huge", |path| File::create(path).unwrap().set_len(10 << 30).unwrap()),
    ("a FIFO", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
    ("a directory", |path| fs::create_dir(path).unwrap()),
    ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
];

#[test]
fn damaged_records_are_named_and_kept_aside() {
    for (what, damage) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        let paths = paths(&state);
        paths.iter().for_each(|path| damage(path));
        let errors = [
            state.mesh().map(drop),
            state.identity().map(drop),
            state.left().map(drop),
            state.proofs().map(drop),
            state.saved_sysctls().map(drop),
            state.creating().map(drop),
            state.programmed().map(drop),
        ];
        for (error, path) in errors.into_iter().zip(&paths) {
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with(&format!("{} is damaged (", path.display())), "{what}: {text}");
        }
        let lock = state.lock(Duration::ZERO).unwrap().unwrap();
        let aside = state.set_aside_damaged(&lock).unwrap();
        assert_eq!(aside.len(), paths.len(), "{what}");
        for (aside, path) in aside.iter().zip(&paths) {
            let kept = with_suffix(path, ".damaged");
            assert!(aside.to_string().contains(&kept.display().to_string()), "{aside}");
            assert!(fs::symlink_metadata(kept).is_ok() && fs::symlink_metadata(path).is_err(), "{what}");
        }
        assert_eq!(state.programmed().unwrap(), None);
        assert!(state.set_aside_damaged(&lock).unwrap().is_empty());
        // A second one does not replace the first, and clearing keeps both.
        damage(&paths[0]);
        state.set_aside_damaged(&lock).unwrap();
        state.clear().unwrap();
        for suffix in [".damaged", ".damaged-2"] {
            assert!(fs::symlink_metadata(with_suffix(&paths[0], suffix)).is_ok(), "{what}");
        }
    }
}

#[test]
fn a_record_never_names_what_cannot_be_ours() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path());
    for (interface, table) in [
        ("wg0", 0),
        ("wg0", 253),
        ("wg0", 254),
        ("wg0", 255),
        ("", 1),
        ("..", 1),
        ("../../etc/x", 1),
        ("a name of 16 by.", 1),
    ] {
        let text = serde_json::json!({ "interface": interface, "table": table }).to_string();
        fs::write(state.path().join("programmed.json"), &text).unwrap();
        let error = state.programmed().unwrap_err();
        assert!(matches!(error, RecordError::Damaged { .. }), "{text}");
    }
    fs::write(state.path().join("sysctls.json"), r#"{"../../x":{"rp_filter":1}}"#).unwrap();
    assert!(state.saved_sysctls().unwrap_err().to_string().contains("not an interface name"));
}

#[test]
fn a_fifo_as_lock_is_an_error_and_no_wait() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path());
    nix::unistd::mkfifo(&state.lock_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(state.lock(Duration::ZERO).is_err());
}

/// Bytes that are nothing, and bytes that are nearly a record.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let interface = prop_oneof![Just("wg0".to_owned()), "\\PC{0,20}"];
    let table = prop_oneof![0..260_u64, any::<u64>()];
    let record = (interface, table).prop_map(|(interface, table)| {
        serde_json::json!({ "interface": interface, "table": table }).to_string().into_bytes()
    });
    let saved = ("\\PC{0,20}", any::<u16>()).prop_map(|(interface, value)| {
        serde_json::json!({ interface: { "rp_filter": value } }).to_string().into_bytes()
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), record, saved]
}

proptest! {
    #[test]
    fn no_content_panics_or_leads_to_a_table_of_the_kernel(bytes in content()) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        for path in paths(&state) {
            fs::write(path, &bytes).unwrap();
        }
        let lock = state.lock(Duration::ZERO).unwrap().unwrap();
        let aside = state.set_aside_damaged(&lock).unwrap().len();
        prop_assert!(aside >= 1, "nothing is all of them at once");
        if let Some(programmed) = state.programmed().unwrap() {
            prop_assert!(![0, 253, 254, 255].contains(&programmed.table()));
            prop_assert!(!programmed.interface().contains('/'));
        }
        prop_assert!(state.saved_sysctls().unwrap().keys().all(|interface| !interface.contains('/')));
        let left = fs::read_dir(directory.path()).unwrap().count();
        prop_assert_eq!(left, ALL.len() + 1, "the records or what was in their place, and the lock");
    }
}

#[test]
fn only_one_process_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path());
    assert!(!state.is_locked().unwrap());
    let held = state.lock(Duration::ZERO).unwrap();
    assert!(held.is_some());
    assert!(state.is_locked().unwrap());
    assert!(state.lock(Duration::from_millis(1)).unwrap().is_none());
    drop(held);
    assert!(!state.is_locked().unwrap());
    assert!(state.lock(Duration::ZERO).unwrap().is_some());
}

#[test]
fn a_look_at_the_lock_makes_nothing_and_a_removed_file_is_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path().join("state"));
    // `wireloom down --purge` has removed everything.
    assert!(!state.is_locked().unwrap());
    assert!(state.lock_if_there().unwrap().is_none());
    assert!(!state.path().exists());
    state.create().unwrap();
    assert!(state.lock_if_there().unwrap().is_none());
    assert!(!state.lock_path().exists());
    let held = state.lock(Duration::ZERO).unwrap();
    assert!(state.lock_if_there().unwrap().is_none());
    drop(held);
    assert!(state.lock_if_there().unwrap().is_some());
    // Who has opened it before it was removed does not have the lock.
    let file = File::open(state.lock_path()).unwrap();
    assert!(lock::is_at(&file, &state.lock_path()).unwrap());
    state.clear().unwrap();
    assert!(!lock::is_at(&file, &state.lock_path()).unwrap());
    drop(state.lock(Duration::ZERO).unwrap().unwrap());
    assert!(!lock::is_at(&file, &state.lock_path()).unwrap());
}

#[test]
fn clearing_keeps_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::at(directory.path());
    fs::write(directory.path().join("wg0.key"), "secret").unwrap();
    let programmed = Programmed::new("wg0".into(), 1).unwrap();
    state.set_programmed(&programmed).unwrap();
    assert_eq!(state.programmed().unwrap(), Some(programmed));
    state.begin_creating("wg0").unwrap();
    assert_eq!(state.creating().unwrap().as_deref(), Some("wg0"));
    state.set_mesh(&Cluster::default()).unwrap();
    let identity = Identity { node: "n1".into(), public_key: PublicKey::from_bytes([7; 32]) };
    state.set_identity(&identity).unwrap();
    assert_eq!(state.identity().unwrap(), Some(identity));
    for left in [Some(Left { gone: false }), Some(Left { gone: true }), None, Some(Left { gone: true })] {
        state.set_left(left).unwrap();
        assert_eq!(state.left().unwrap(), left);
    }
    drop(state.lock(Duration::ZERO).unwrap());
    state.clear().unwrap();
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wg0.key"]);
}

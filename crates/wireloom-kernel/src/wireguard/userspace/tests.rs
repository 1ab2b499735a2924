//! A device that answers late or never, in memory but for its socket.

use std::{
    fs,
    io::Write as _,
    os::unix::net::{UnixListener, UnixStream},
};

use tempfile::TempDir;

use super::*;

const REPLIES: &str = "fwmark=7\nerrno=0\n\nsource_check=off\nerrno=0\n\n";

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device whose readings are not waited for longer than is necessary, and the socket that it is asked on.
fn device() -> (UserspaceDevice, UnixListener, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("wg0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let device = UserspaceDevice { socket, reading_took: Duration::ZERO, ..UserspaceDevice::new("wg0") };
    (device, listener, directory)
}

fn silence(error: &Cause) -> Silence {
    let Cause::Silent(silence) = error else { panic!("{error}") };
    *silence
}

fn answer(listener: &UnixListener, replies: &str) -> UnixStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(replies.as_bytes()).unwrap();
    stream
}

#[test]
fn a_late_answer_is_taken_and_ends_the_silence() {
    let (mut device, listener, _directory) = device();
    let error = device.read().unwrap_err();
    assert_eq!(silence(&error).process, Some(std::process::id().cast_signed()));
    assert_eq!(
        error.to_string(),
        format!("the WireGuard device does not answer (process {})", std::process::id())
    );
    // Half of an answer is none.
    let (first, rest) = REPLIES.split_at(20);
    let mut stream = answer(&listener, first);
    assert!(silence(&device.read().unwrap_err()).lasted >= READ_TIMEOUTS.0);
    assert!(device.silence().is_some());
    stream.write_all(rest.as_bytes()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let read = loop {
        match device.read() {
            Err(_) => assert!(Instant::now() < deadline),
            read => break read.unwrap().unwrap(),
        }
    };
    assert_eq!((read.fwmark, read.source_check), (7, SourceCheck::Off));
    assert_eq!(device.silence(), None);
}

#[test]
fn a_silent_device_is_not_waited_for_again() {
    let (mut device, _listener, _directory) = device();
    device.read().unwrap_err();
    let mut in_vain = || {
        let begun = Instant::now();
        for _ in 0..10 {
            silence(&device.read().unwrap_err());
            silence(&device.change(&[]).unwrap_err());
        }
        begun.elapsed()
    };
    // On a busy machine, the best of a few.
    let least = (0..5).map(|_| in_vain()).min().unwrap();
    assert!(least < READ_TIMEOUTS.1, "{least:?}");
}

#[test]
fn a_device_that_has_become_slow_is_waited_for_from_its_first_late_answer_on() {
    let (mut device, listener, _directory) = device();
    // Later than the least wait, and sooner than the longest.
    let slow = READ_TIMEOUTS.0 * 3;
    let served = thread::spawn(move || {
        (0..3)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                thread::sleep(slow);
                stream.write_all(REPLIES.as_bytes()).unwrap();
                stream
            })
            .collect::<Vec<_>>()
    });
    silence(&device.read().unwrap_err());
    let deadline = Instant::now() + PATIENCE;
    while device.read().is_err() {
        assert!(Instant::now() < deadline);
    }
    for _ in 0..2 {
        assert!(device.read().unwrap().is_some());
    }
    drop(served.join().unwrap());
}

#[test]
fn only_a_device_that_served_the_socket_before_is_dismissed() {
    let (mut device, listener, directory) = device();
    device.note_socket();
    let socket = directory.path().join("wg0.sock");
    // Ours has ended, and one of another network namespace took its place.
    drop(listener);
    fs::remove_file(&socket).unwrap();
    let foreign = UnixListener::bind(&socket).unwrap();
    device.dismiss().unwrap();
    assert!(is_served(&socket));
    drop(foreign);
    // What serves nothing is not waited for.
    device.dismiss().unwrap();

    fs::remove_file(&socket).unwrap();
    let ours = UnixListener::bind(&socket).unwrap();
    device.note_socket();
    let ends = thread::spawn(move || drop(ours.accept().unwrap()));
    device.dismiss().unwrap();
    ends.join().unwrap();
    assert!(!socket.exists());
}

/// Both were frozen between the question and the answer, for longer than a device may be silent.
#[test]
fn time_that_we_slept_through_is_no_silence() {
    let (mut device, listener, _directory) = device();
    device.read().unwrap_err();
    for _ in 0..2 {
        let unanswered = device.unanswered.as_mut().unwrap();
        unanswered.looked = unanswered.looked.checked_sub(4 * SILENCE_MAX).unwrap();
        silence(&device.read().unwrap_err());
    }
    let lasted = device.silence().unwrap().lasted;
    assert!(lasted >= 2 * LOOK_MAX && lasted < SILENCE_MAX, "{lasted:?}");
    let _stream = answer(&listener, REPLIES);
    assert!(device.read().unwrap().is_some());
    assert_eq!(device.silence(), None);
}

#[test]
fn after_a_change_without_an_answer_the_device_is_read_anew() {
    let (mut device, listener, _directory) = device();
    silence(&device.change(&[]).unwrap_err());
    let asked = answer(&listener, "errno=0\n\n");
    let reader = thread::spawn(move || answer(&listener, REPLIES));
    assert_eq!(device.read().unwrap().unwrap().fwmark, 7);
    drop((asked, reader.join().unwrap()));
}

#[test]
fn a_device_that_is_gone_is_not_silent() {
    let (mut device, listener, _directory) = device();
    device.read().unwrap_err();
    drop(listener);
    assert_eq!(device.read().unwrap(), None);
    assert_eq!(device.silence(), None);
}

//! Keys that are out of use are nowhere in the memory of the device's process.
//!
//! `wireloom-proto/tests/wiping.rs` says the same of a `Device` and of all secrets of a handshake. Here the keys take
//! the way that users send them: by the control socket, through the threads of its clients.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    net::UdpSocket,
};

use base64ct::{Base64, Encoding as _};
use wireloom_lab::{Node, PATIENCE, mesh::KeyPair, until};

use crate::{
    fixtures::device::{node, process, request, run},
    wireloom,
};

/// A key, and what is looked for: parts of its bytes and of its letters, because registers of 16 bytes are saved one
/// by one.
struct Key {
    file: &'static str,
    hex: String,
    parts: Vec<Vec<u8>>,
}

impl Key {
    fn generate(node: &Node, file: &'static str) -> Self {
        let text = node.run("wg genkey").unwrap();
        node.host.space.write(file, &text).unwrap();
        let bytes = Base64::decode_vec(text.trim()).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // Past the bits that are the same in all private keys.
        let halves = [&bytes[1..15], &bytes[17..31]].map(<[u8]>::to_vec);
        let letters = (2..62).step_by(15).map(|at| hex.as_bytes()[at..at + 15].to_vec());
        let parts = halves.into_iter().chain(letters).collect();
        Self { file, hex, parts }
    }
}

#[test]
fn keys_that_were_refused_or_removed_are_nowhere_in_the_memory_of_the_process() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    let peer = KeyPair::generate(wireloom(), node).unwrap().public;
    let set = |[private, preshared]: &[Key; 2], more: &str| {
        let (private, preshared) = (private.file, preshared.file);
        node.run(&format!("wg set wg0 private-key {private} {more} peer {peer} preshared-key {preshared}"))
    };
    let keys = || ["/run/private", "/run/preshared"].map(|file| Key::generate(node, file));

    // Each time nothing comes afterwards that would overwrite what the last request has left behind.
    let not_granted = keys();
    let squatter = node.host.space.inside(|| UdpSocket::bind("0.0.0.0:7000")).unwrap().unwrap();
    set(&not_granted, "listen-port 7000").unwrap_err();
    drop(squatter);
    assert_gone(node, &not_granted, "a request that is refused");

    let not_understood = keys();
    let [private, preshared] = not_understood.each_ref().map(|key| &key.hex);
    let public = "0".repeat(64);
    let answer = request(
        node,
        &format!(
            "set=1\nprivate_key={private}\npublic_key={public}\npreshared_key={preshared}\nnonsense=1\n\n"
        ),
    );
    assert!(!answer.contains("errno=0"), "{answer}");
    assert_gone(node, &not_understood, "a request that nobody understands");

    let used = keys();
    set(&used, "").unwrap();
    let found = search(node, &used);
    assert!(found.iter().all(|count| *count > 0), "those in use would be found: {found:?}");
    node.run("wg show wg0 dump").unwrap();
    node.run(&format!("wg set wg0 private-key /dev/null peer {peer} remove")).unwrap();
    assert_gone(node, &used, "the keys were removed");
}

/// Waits until the keys are nowhere: the thread of a client wipes its buffer when it sees that the client has gone.
#[track_caller]
fn assert_gone(node: &Node, keys: &[Key], after: &str) {
    let mut found = Vec::new();
    let gone = || {
        found = search(node, keys);
        found.iter().all(|count| *count == 0).then_some(())
    };
    let outcome = until(PATIENCE, "the keys to be gone", gone);
    outcome.unwrap_or_else(|error| panic!("after {after}: {error}: {found:?}"));
}

/// How often parts of each key are found in the writable memory of the device's process.
fn search(node: &Node, keys: &[Key]) -> Vec<usize> {
    // The keys' numbers by the first two bytes of a part, so that memory is passed once.
    let place = |start: &[u8]| usize::from(start[0]) << 8 | usize::from(start[1]);
    let mut by_start = vec![Vec::new(); 1 << 16];
    for (number, key) in keys.iter().enumerate() {
        key.parts.iter().for_each(|part| by_start[place(part)].push((number, part)));
    }
    let process = process(node);
    let mut found = vec![0; keys.len()];
    for memory in node.host.space.inside(|| writable_memory(process)).unwrap() {
        for (at, start) in memory.windows(2).enumerate() {
            for (number, part) in &by_start[place(start)] {
                found[*number] += usize::from(memory[at..].starts_with(part));
            }
        }
    }
    found
}

/// What is mapped writable in a process, a mapping at a time.
fn writable_memory(process: u32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{process}/mem")).unwrap();
    let ranges =
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|access| access.starts_with("rw")));
    let ranges = ranges.filter_map(|line| line.split(' ').next()?.split_once('-'));
    ranges
        .map(|(from, to)| [from, to].map(|address| u64::from_str_radix(address, 16).unwrap()))
        .map(|[from, to]| {
            let mut bytes = Vec::new();
            memory.seek(SeekFrom::Start(from)).unwrap();
            // The kernel's own mappings cannot be read, and an allocator may give memory back meanwhile.
            let _ = memory.by_ref().take(to - from).read_to_end(&mut bytes);
            bytes
        })
        .collect()
}

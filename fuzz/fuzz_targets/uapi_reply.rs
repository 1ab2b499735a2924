//! The replies of a device on its control socket, as the agent reads them: a device or an error, which shows no value;
//! and a device that is written as such a reply is read as the same one.
#![no_main]

use std::{fmt::Write as _, time::SystemTime};

use libfuzzer_sys::fuzz_target;
use wireloom_kernel::{DeviceState, fuzzing::userspace};

/// The reply for a device, without its keys.
fn reply(device: &DeviceState) -> String {
    let mut text = format!("listen_port={}\nfwmark={}\n", device.listen_port, device.fwmark);
    for (key, peer) in &device.peers {
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{name}={value}").expect("memory takes all");
        };
        line("public_key", &key.to_hex());
        peer.endpoint.iter().for_each(|endpoint| line("endpoint", endpoint));
        let since = peer.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        line("last_handshake_time_sec", &since.as_secs());
        line("last_handshake_time_nsec", &since.subsec_nanos());
        line("rx_bytes", &peer.received);
        line("tx_bytes", &peer.sent);
        line("persistent_keepalive_interval", &peer.persistent_keepalive);
        peer.allowed_ips.iter().for_each(|ip| line("allowed_ip", ip));
    }
    text + "errno=0\n\n"
}

fuzz_target!(|replies: &str| {
    let (first, second) = userspace::split(replies).unwrap_or((replies, replies));
    let _ = (userspace::change(first), userspace::source_check(second), userspace::source_check(first));
    match userspace::device(first) {
        Ok(device) => {
            let again = userspace::device(&reply(&device)).expect("a valid reply");
            let mut expected = device;
            expected.public_key = None;
            expected.peers.values_mut().for_each(|peer| peer.preshared_key = None);
            assert_eq!(again, expected);
        }
        Err(error) => {
            let is_secret =
                |word: &&str| word.len() > 15 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let mut words = first.split(['=', '\n']).filter(is_secret);
            assert!(words.all(|word| !error.contains(&word[..16])), "{error}");
        }
    }
});

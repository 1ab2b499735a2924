//! Model checks of punting. See [`crate::sync::model`].

use std::{
    iter,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use wireloom_proto::{Device, Now, UnixTime};
use wireloom_types::PublicKey;

use super::*;
use crate::sync::{model::check, thread};

const NOW: Now = Now {
    monotonic: Instant::from_nanos(1_000_000_000_000),
    unix: UnixTime::from_epoch(Duration::from_secs(1_767_225_600)),
};
const FROM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 51820);

fn a_signal() -> Signal {
    let mut device = Device::new(&[1; 32]);
    device.configure(NOW, |configuration| {
        let mut peer = configuration.add_peer(PublicKey::from_bytes([1; 32])).expect("the first one");
        peer.set_endpoint(FROM);
    });
    device.peers().next().and_then(|peer| peer.path.seek()).expect("nobody has sought it")
}

/// A worker punts two handshake messages and something last. The control thread has turns, each of which answers one
/// handshake message, and sleeps when neither a turn has left something nor the wake-up is signalled.
fn check_that_nothing_waits(last: impl Fn(&mut Punter) + Copy + Send + Sync + 'static) {
    check(3, move || {
        let control = WakeUp::new().expect("a model has no limits");
        let (mut punter, punted) = punts(&control, &KnownAddresses::default(), &Arc::default());
        let worker = thread::Builder::new().spawn(move || {
            (0..2).for_each(|_| punter.punt_handshake(NOW.monotonic, FROM.into(), &[1; 4]));
            last(&mut punter);
            // The channels stay.
            punter
        });
        let mut taken = 0;
        let mut turns = || {
            loop {
                control.clear();
                taken += usize::from(LANES.into_iter().any(|lane| punted.next_handshake(lane).is_some()));
                taken += iter::from_fn(|| punted.next_signal()).count();
                taken += iter::from_fn(|| punted.next_path_mtus()).count();
                if !punted.has_handshakes() {
                    break;
                }
            }
        };
        turns();
        let _punter = worker.expect("a model has no limits").join();
        while control.take() {
            turns();
        }
        assert_eq!(taken, 3);
    });
}

#[test]
fn nothing_that_was_punted_waits_while_the_control_thread_sleeps() {
    let signal = a_signal();
    check_that_nothing_waits(|punter| punter.punt_handshake(NOW.monotonic, FROM.into(), &[1; 4]));
    check_that_nothing_waits(|punter| punter.punt_path_mtus(BTreeMap::new()));
    check_that_nothing_waits(move |punter| punter.signal(Some(signal)));
}

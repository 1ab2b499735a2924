//! The UDP port of a device with a session: see [`Nodes`].
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_fuzz::{
    input::Input,
    nodes::Nodes,
    tunnel::{Place, with},
};

thread_local!(static PLACE: Place<Nodes> = const { Place::new(None) });

fuzz_target!(|bytes: &[u8]| {
    with(&PLACE, Nodes::default, |nodes, _| {
        let mut input = Input(bytes);
        while !input.0.is_empty() {
            nodes.step(&mut input, false);
        }
    });
});

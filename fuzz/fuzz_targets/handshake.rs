//! The UDP port of a device whose sessions end and begin: see [`Nodes`].
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_fuzz::{
    input::Input,
    nodes::Nodes,
    tunnel::{Place, with},
};

/// Enough for an initiation that is lost, its repetition, the response, a confirmation and a renewal, each damaged.
const STEPS: usize = 12;

thread_local!(static PLACE: Place<Nodes> = const { Place::new(None) });

fuzz_target!(|bytes: &[u8]| {
    with(&PLACE, Nodes::default, |nodes, _| {
        let mut input = Input(bytes);
        for _ in 0..STEPS {
            if !input.0.is_empty() {
                nodes.step(&mut input, true);
            }
        }
    });
});

//! The chains that limit TCP segments over IPv6 where a path is too narrow for IPv6's least MTU. IPv6 has no way to
//! tell a sender of less, but TCP has.

use super::{
    chain::{Chain, Hook},
    expression::{Rule, is_syn, limit_segments, meta, rule},
};

/// `mangle` (-150): nobody judges or translates by what it changes.
const MANGLE: i32 = -150;

/// What peers say limits what is sent from here.
pub(super) const SEGMENTS_IN: Chain =
    Chain { name: "segments_in", hook: Hook { kind: "filter", point: "prerouting", priority: MANGLE } };

/// What is said from here limits what peers send.
pub(super) const SEGMENTS_OUT: Chain =
    Chain { name: "segments_out", hook: Hook { kind: "filter", point: "postrouting", priority: MANGLE } };

/// Both chains, for segments of at most this many bytes.
pub(super) fn chains(bytes: u16, interface: &str) -> [(Chain, Vec<Rule>); 2] {
    [(SEGMENTS_IN, "iifname"), (SEGMENTS_OUT, "oifname")].map(|(chain, side)| {
        let ours = meta(side).is_named(interface);
        (chain, vec![rule([ours, meta("nfproto").is("ipv6"), is_syn(), limit_segments(bytes)])])
    })
}

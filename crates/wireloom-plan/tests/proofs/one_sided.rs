//! A proven node whose plaintext is refused again and again has not proved us.

use wireloom_plan::{proofs::OneSided, standing::Standings};

use crate::world::{World, seconds};

/// Looks when this many packets of `b` were refused so far, this many seconds after the start.
fn look(one_sided: &mut OneSided, standings: &Standings, packets: u64, after: f64) -> Vec<String> {
    let now = crate::world::START + seconds(after);
    one_sided.note([("b", packets)], standings, now);
    one_sided.nodes(now).into_keys().collect()
}

#[test]
fn a_node_whose_plaintext_is_refused_is_named_for_a_minute_after_the_last_packet() {
    let standings = World::with_b().proofs.standings();
    let mut watch = OneSided::default();
    assert_eq!(look(&mut watch, &standings, 7, 0.0), [""; 0], "that may have been long ago");
    assert_eq!(look(&mut watch, &standings, 7, 20.0), [""; 0]);
    assert_eq!(look(&mut watch, &standings, 8, 40.0), ["b"]);
    assert_eq!(look(&mut watch, &standings, 9, 60.0), ["b"]);
    let since = crate::world::START + seconds(40.0);
    assert_eq!(watch.nodes(since + seconds(20.0)), [("b".to_owned(), since)].into());
    assert_eq!(look(&mut watch, &standings, 9, 119.0), ["b"]);
    assert_eq!(look(&mut watch, &standings, 9, 120.0), [""; 0]);
}

#[test]
fn a_table_that_is_made_anew_counts_from_zero() {
    let standings = World::with_b().proofs.standings();
    let mut watch = OneSided::default();
    look(&mut watch, &standings, 1000, 0.0);
    assert_eq!(look(&mut watch, &standings, 0, 20.0), [""; 0]);
    assert_eq!(look(&mut watch, &standings, 1000, 40.0), ["b"]);
    let mut watch = OneSided::default();
    look(&mut watch, &standings, 1000, 0.0);
    assert_eq!(look(&mut watch, &standings, 3, 20.0), ["b"]);
}

#[test]
fn a_node_that_may_not_know_yet_or_is_not_proven_is_not_named() {
    let mut world = World::new();
    world.handshake(2);
    world.pass(14.0);
    let mut watch = OneSided::default();
    for standings in [world.proofs.standings(), Standings::new()] {
        look(&mut watch, &standings, 1, 0.0);
        assert_eq!(look(&mut watch, &standings, 9, 20.0), [""; 0]);
    }
    world.pass(1.0);
    let standings = world.proofs.standings();
    assert_eq!(look(&mut watch, &standings, 9, 40.0), [""; 0]);
    assert_eq!(look(&mut watch, &standings, 10, 60.0), ["b"]);
    assert_eq!(look(&mut watch, &Standings::new(), 11, 80.0), [""; 0], "it is not proven any more");
}

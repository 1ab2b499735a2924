//! Arbitrary histories.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use proptest::{collection, prelude::*};

use crate::world::{World, key, net};

#[derive(Debug, Clone)]
enum Event {
    Handshake(u8),
    Pass(u32),
    Restart,
    ClockBack(u32),
    Key(usize, Option<u8>),
    Encrypt(usize, bool),
    Workloads(usize, Vec<u8>),
    Leave(usize),
    Join(usize),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn event() -> impl Strategy<Value = Event> {
    let other = || 1..4_usize;
    prop_oneof![
        3 => (1..6_u8).prop_map(Event::Handshake),
        6 => (0..40_u32).prop_map(Event::Pass),
        1 => Just(Event::Restart),
        1 => (1..10_000_u32).prop_map(Event::ClockBack),
        2 => (other(), prop::option::of(1..6_u8)).prop_map(|(node, key)| Event::Key(node, key)),
        1 => (0..4_usize, any::<bool>()).prop_map(|(node, encrypt)| Event::Encrypt(node, encrypt)),
        2 => (other(), collection::vec(1..6_u8, 0..3)).prop_map(|(node, blocks)| Event::Workloads(node, blocks)),
        1 => other().prop_map(Event::Leave),
        1 => other().prop_map(Event::Join),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Handshake(number) => world.handshake(*number),
        // Once a second, as the agent does.
        Event::Pass(seconds) => (0..*seconds).for_each(|_| world.pass(1.0)),
        Event::Restart => world.restart(),
        Event::ClockBack(seconds) => {
            world.now -= Duration::from_secs((*seconds).into());
            world.look();
        }
        Event::Key(node, number) => world.edit(|mesh| {
            let node = mesh.nodes.get_mut(NAMES[*node]);
            node.into_iter().for_each(|node| node.public_key = number.map(key));
        }),
        Event::Encrypt(node, encrypt) => world.edit(|mesh| {
            mesh.nodes.get_mut(NAMES[*node]).into_iter().for_each(|node| node.encrypt = *encrypt);
        }),
        Event::Workloads(node, blocks) => world.edit(|mesh| {
            let blocks = blocks.iter().map(|block| net(&format!("10.161.{block}.0/24")));
            mesh.nodes
                .get_mut(NAMES[*node])
                .into_iter()
                .for_each(|node| node.workloads = blocks.clone().collect());
        }),
        Event::Leave(node) => world.edit(|mesh| _ = mesh.nodes.remove(NAMES[*node])),
        Event::Join(node) => {
            let record = crate::world::mesh().nodes[NAMES[*node]].clone();
            world.edit(|mesh| _ = mesh.nodes.entry(NAMES[*node].to_owned()).or_insert(record));
        }
    }
}

/// What a careful observer notes about each node, told the history only.
#[derive(Default)]
struct Noted {
    /// How long it has been proven without a break, on a clock that is never set back.
    proven: BTreeMap<&'static str, Duration>,
    /// How long both records have said otherwise.
    not_encrypting: BTreeMap<&'static str, Duration>,
    left: BTreeMap<&'static str, Duration>,
    /// The blocks of proven nodes, and how long ago their nodes had them.
    blocks: BTreeMap<(&'static str, IpNet), Duration>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn only_the_two_ways_lead_back_and_what_was_encrypted_stays_so(
        events in collection::vec(event(), 1..40),
    ) {
        let mut world = World::new();
        let mut noted = Noted::default();
        for event in &events {
            let steps: &[Event] = &match event {
                Event::Pass(seconds) => vec![Event::Pass(1); *seconds as usize],
                event => vec![event.clone()],
            };
            for step in steps {
                let passed = if matches!(step, Event::Pass(_)) { Duration::from_secs(1) } else { Duration::ZERO };
                let before = world.proofs.standings();
                happen(&mut world, step);
                check(&mut noted, &world, &before, passed)?;
            }
        }
    }
}

fn check(
    noted: &mut Noted,
    world: &World,
    before: &wireloom_plan::standing::Standings,
    passed: Duration,
) -> Result<(), TestCaseError> {
    let own_encrypts = world.mesh.nodes["a"].encrypt;
    for name in &NAMES[1..] {
        let record = world.mesh.nodes.get(*name);
        let encrypts = own_encrypts && record.is_none_or(|record| record.encrypt);
        count(&mut noted.not_encrypting, name, !encrypts, passed);
        count(&mut noted.left, name, record.is_none(), passed);
        let standing = world.standing(name).filter(|standing| standing.egress);
        let (was, is) = (before.get(*name).filter(|standing| standing.egress), standing.as_ref());
        let ended = noted.not_encrypting.contains_key(name);
        let gone = noted.left.contains_key(name);

        // Egress lasts until 15 seconds after `encrypt = false`, or until the node has been gone for a minute or
        // has left nothing.
        if was.is_some() && is.is_none() {
            let directly =
                noted.not_encrypting.get(name).is_some_and(|time| *time >= Duration::from_secs(15));
            let left_nothing = !world.effective.nodes.contains_key(*name);
            prop_assert!(directly || (gone && left_nothing), "{name} fell back");
        }
        // Ingress lasts until `encrypt = false`.
        if was.is_some_and(|was| was.ingress) && is.is_some_and(|is| !is.ingress) {
            prop_assert!(ended || passed == Duration::ZERO && encrypts, "{name} accepts plaintext again");
        }
        if ended {
            prop_assert!(is.is_none_or(|is| !is.ingress));
        }
        // And does not begin before 15 seconds have passed.
        count(&mut noted.proven, name, is.is_some() && !ended, passed);
        if is.is_some_and(|is| is.ingress) {
            prop_assert!(noted.proven[name] >= Duration::from_secs(15), "{name} too early");
        }
        if let Some(is) = is {
            prop_assert!(is.egress && !(is.ingress && is.fresh));
        }

        // No block of a proven node vanishes before a minute has passed, unless somebody claims it.
        let claimed = |block: &IpNet| {
            world.mesh.nodes.values().any(|node| node.workloads.iter().any(|wider| wider.contains(block)))
        };
        noted.blocks.retain(|(owner, block), since| {
            *since += if owner == name { passed } else { Duration::ZERO };
            owner != name || !(ended || claimed(block) || *since >= Duration::from_secs(60))
        });
        if is.is_some() && !ended {
            for block in record.into_iter().flat_map(|record| &record.workloads) {
                noted.blocks.insert((*name, *block), Duration::ZERO);
            }
        }
        for (owner, block) in noted.blocks.keys().filter(|(owner, _)| owner == name) {
            let node = world.effective.nodes.get(*owner);
            prop_assert!(node.is_some_and(|node| node.workloads.contains(block)), "{owner} lost {block}");
            prop_assert!(is.is_some_and(|is| is.egress), "{block} of {owner} is direct");
        }
    }
    // Of nodes with one key only the one that has a proof of it.
    prop_assert!(!world.proofs.standings().contains_key("a"));
    Ok(())
}

fn count(times: &mut BTreeMap<&'static str, Duration>, name: &'static str, holds: bool, passed: Duration) {
    if holds {
        times.entry(name).and_modify(|time| *time += passed).or_insert(Duration::ZERO);
    } else {
        times.remove(name);
    }
}

//! Link mode with several queues.

use super::*;
use crate::tun::memory_tap_of;

fn on_link(network: &MemoryNetwork, number: u8, queues: usize) -> Machine {
    let mode = Mode::new(PeerLookup::Gateway, SourceCheck::Off).expect("a valid combination");
    let interface = memory_tap_of(NonZero::new(queues).expect("at least one"));
    Machine::with(network, number, mode, interface)
}

/// Machines that are neighbours of each other, all up, with these numbers of queues.
fn neighbours<const N: usize>(queues: [usize; N]) -> [Machine; N] {
    let network = network();
    let mut machines: [Machine; N] =
        std::array::from_fn(|place| on_link(&network, 1 + place as u8, queues[place]));
    for place in 0..N {
        let (before, rest) = machines.split_at_mut(place);
        let (own, after) = rest.split_first_mut().expect("there is one");
        let others: Vec<_> = before.iter().chain(after.iter()).collect();
        own.configure(at(0), &others);
        own.up();
        own.turn(at(0));
    }
    machines
}

fn there(machine: &Machine) -> [u8; 6] {
    LinkAddress::of(machine.public_key()).to_bytes()
}

fn frame(to: [u8; 6], from: &Machine, packet: &[u8]) -> Vec<u8> {
    [&to[..], &there(from), &[8, 0], packet].concat()
}

/// Takes the packets that have arrived and appends their numbers to the flows of each neighbour.
fn collect(machine: &Machine, flows: &mut BTreeMap<(u8, u8), Vec<u32>>) {
    while let Some(frame) = machine.stack.receive() {
        let packet = &frame[14..];
        let number = packet[28..32].try_into().expect("four bytes");
        flows.entry((packet[15], packet[21])).or_default().push(u32::from_be_bytes(number));
    }
}

const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 5];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Frames go to one neighbour or to all, while turns happen in any order and neighbours change.
    #[test]
    fn every_frame_of_every_flow_arrives_once_and_in_order(
        queues in prop::array::uniform3(1..5_usize),
        steps in prop::collection::vec((0..20_u8, 0..FLOWS, 1..6_u8), 1..200),
    ) {
        let mut machines = neighbours(queues);
        let inner = [0, 1, 2].map(|place: usize| machines[place].inner);
        let stranger = PrivateKey::from_bytes([77; 32]).public_key().to_hex();
        let mut sent = [0; FLOWS as usize];
        let mut arrived = [BTreeMap::new(), BTreeMap::new()];
        // Sessions exist, so no queue of packets that wait for one can overflow.
        for place in [1, 2] {
            let first = packet(inner[0], inner[place], &[0; 12]);
            machines[0].stack.send(&frame(there(&machines[place]), &machines[0], &first));
        }
        settle_all(at(1), &mut machines);
        machines[1..].iter().for_each(|machine| while machine.stack.receive().is_some() {});
        for (what, flow, count) in steps {
            match what {
                0..8 => for _ in 0..count {
                    // A third of the flows goes to each neighbour, and a third to both.
                    let (link, to) = match flow % 3 {
                        0 => (GROUP, Ipv4Addr::new(224, 0, 0, 5)),
                        place => (there(&machines[usize::from(place)]), inner[usize::from(place)]),
                    };
                    let number = &mut sent[usize::from(flow)];
                    let packet = flow_packet(inner[0], to, flow, *number);
                    machines[0].stack.send(&frame(link, &machines[0], &packet));
                    *number += 1;
                },
                8..11 => for machine in &mut machines {
                    machine.control(at(1));
                },
                11 => {
                    let remove = if count % 2 == 0 { "remove=true" } else { "path_mtu=1400" };
                    let lines = format!("public_key={stranger}\n{remove}");
                    prop_assert_eq!(machines[0].set(at(1), &lines), Reply::Done);
                }
                place => for machine in &machines {
                    let _ = machine.carry(at(1), usize::from(place) - 12);
                },
            }
            for side in [0, 1] {
                collect(&machines[1 + side], &mut arrived[side]);
            }
        }
        settle_all(at(1), &mut machines);
        for side in [0, 1] {
            collect(&machines[1 + side], &mut arrived[side]);
            for flow in 0..FLOWS {
                let is_for_it = flow % 3 == 0 || usize::from(flow % 3) == side + 1;
                let count = if is_for_it { sent[usize::from(flow)] } else { 0 };
                let numbers = arrived[side].remove(&(1, flow)).unwrap_or_default();
                prop_assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "flow {} at {}", flow, side);
            }
        }
        prop_assert_eq!(machines.each_ref().map(Machine::all_dropped), [0; 3]);
    }
}

#[test]
fn questions_and_unsendable_packets_of_any_queue_are_answered() {
    let mut machines = neighbours([3, 1]);
    let [own, other] = [0, 1].map(|place: usize| there(&machines[place]));
    let key = machines[1].public_key().to_hex();
    assert_eq!(machines[0].set(at(1), &format!("public_key={key}\npath_mtu=1400")), Reply::Done);
    let inner = [0, 1].map(|place: usize| machines[place].inner);
    let arp = |target: Ipv4Addr| {
        let question =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &inner[0].octets(), &[0; 6], &target.octets()].concat();
        [&[0xff; 6][..], &own, &[8, 6], &question].concat()
    };
    let too_big = unfragmentable(&machines);
    let to_nobody = frame([2, 7, 7, 7, 7, 7], &machines[0], &packet(inner[0], inner[1], &[0; 20]));
    for queue in 0..3 {
        machines[0].stack.send_by(queue, &arp(inner[1]));
        settle_all(at(1), &mut machines);
        let answer = machines[0].stack.receive().expect("an answer");
        assert_eq!((&answer[..6], &answer[6..12], answer[21]), (&own[..], &other[..], 2));
        for (sent, code) in [(&too_big, 4), (&to_nobody, 1)] {
            machines[0].stack.send_by(queue, sent);
            settle_all(at(1), &mut machines);
            let error = machines[0].stack.receive().expect("an error");
            assert_eq!((error[14 + 9], error[14 + 20], error[14 + 21]), (1, 3, code));
        }
        assert_eq!(machines[0].stack.receive(), None);
    }
    assert_eq!((machines[0].dropped("too-big"), machines[0].dropped("no-neighbour")), (3, 3));
    // The stack is told of a change, although other queues carried its questions.
    assert_eq!(machines[0].set(at(1), &format!("public_key={key}\nremove=true")), Reply::Done);
    let told = machines[0].stack.receive().expect("an announcement");
    assert_eq!(told[6..12], LinkAddress::NOBODY.to_bytes());
}

/// A packet of 1,400 bytes from the first machine to the second that must not be fragmented.
fn unfragmentable(machines: &[Machine; 2]) -> Vec<u8> {
    let [from, to] = machines;
    let mut packet = packet(from.inner, to.inner, &[0; 1380]);
    packet[6] = 0x40;
    packet[9] = 17;
    frame(there(to), from, &packet)
}

#[test]
fn a_path_mtu_that_one_queue_learns_applies_to_all() {
    let mut machines = neighbours([3, 1]);
    let remote = machines[1].engine_address();
    let frame = unfragmentable(&machines);
    // First there are forged ones about so many others that the right one is dropped. Then it is reported again.
    for (second, strangers, refused) in [(1, 500, false), (2, 0, false), (3, 0, true)] {
        let strangers = (1..=strangers).map(|number| Ipv4Addr::from_bits(0x0a63_0000 + number).into());
        for told in strangers.chain((second != 2).then_some(remote)) {
            machines[0].network.tell_path_mtu(PORT, told, 1300);
        }
        let _ = machines[0].carry(at(second), 2);
        settle_all(at(second), &mut machines);
        for queue in 0..3 {
            machines[0].stack.send_by(queue, &frame);
            settle_all(at(second), &mut machines);
            let (here, there) = (machines[0].stack.receive(), machines[1].stack.receive());
            assert_eq!((here.is_some(), there.is_some()), (refused, !refused), "queue {queue}");
        }
    }
}

#[test]
fn a_flood_of_multicasts_is_spread_over_several_turns() {
    const FLOOD: usize = 250;
    for queue in [0, 1] {
        let mut machines = neighbours([2, 1, 1]);
        let inner = machines.each_ref().map(|machine| machine.inner);
        for place in [1, 2] {
            let greeting = packet(inner[0], inner[place], b"hello");
            machines[0].stack.send(&frame(there(&machines[place]), &machines[0], &greeting));
        }
        settle_all(at(1), &mut machines);
        machines[1..].iter().for_each(|machine| while machine.stack.receive().is_some() {});
        let to_all = frame(GROUP, &machines[0], &packet(inner[0], Ipv4Addr::new(224, 0, 0, 5), &[0; 12]));
        for _ in 0..FLOOD {
            machines[0].stack.send_by(queue, &to_all);
        }
        let before = machines[0].network.seen().len();
        let _ = machines[0].carry(at(2), queue);
        machines[0].control(at(2));
        let sent = machines[0].network.seen().len() - before;
        assert!((1..2 * FLOOD).contains(&sent), "{sent} of {} in one turn, by queue {queue}", 2 * FLOOD);
        settle_all(at(2), &mut machines);
        for machine in &machines[1..] {
            let arrived = std::iter::from_fn(|| machine.stack.receive()).count();
            assert_eq!((arrived, machine.all_dropped()), (FLOOD, 0));
        }
    }
}

#[test]
fn all_queues_follow_neighbours_that_come_and_go() {
    let mut machines = neighbours([3, 3]);
    let key = machines[1].public_key().to_hex();
    let inner = [0, 1].map(|place: usize| machines[place].inner);
    let to = there(&machines[1]);
    for (round, known) in [true, false, true].into_iter().enumerate() {
        let now = at(10 * (1 + round as u64));
        let peer =
            format!("public_key={key}\nendpoint={}\nallowed_ip={}/32", machines[1].endpoint(), inner[1]);
        let lines = if known { peer } else { format!("public_key={key}\nremove=true") };
        assert_eq!(machines[0].set(now, &lines), Reply::Done);
        for flow in 0..FLOWS {
            let packet = flow_packet(inner[0], inner[1], flow, 0);
            machines[0].stack.send_by(usize::from(flow % 3), &frame(to, &machines[0], &packet));
        }
        settle_all(now, &mut machines);
        let mut arrived = BTreeMap::new();
        collect(&machines[1], &mut arrived);
        assert_eq!(arrived.len(), if known { usize::from(FLOWS) } else { 0 }, "round {round}");
    }
    assert_eq!(machines[0].dropped("no-neighbour"), u64::from(FLOWS));
}

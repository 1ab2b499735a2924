//! Interfaces with several queues. The tests give the workers turns themselves, in unlikely orders, or run them on
//! threads.

mod life;
mod link;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use proptest::prelude::*;
use wireloom_proto::message::DATA_OVERHEAD;

use super::*;
use crate::{runtime::turn::Ready, tun::memory_tun_of};

/// Workers on threads that never wait.
#[derive(Default)]
struct Restless {
    threads: Vec<JoinHandle<MemoryWorker>>,
    halt: Arc<AtomicBool>,
}

impl Runner<MemoryWorker> for Restless {
    fn start(&mut self, workers: Vec<MemoryWorker>) {
        self.halt = Arc::default();
        self.threads.extend(workers.into_iter().map(|mut worker| {
            let halt = Arc::clone(&self.halt);
            thread::spawn(move || {
                while !halt.load(Ordering::Relaxed) {
                    worker.turn(at(1), Ready::ALL).expect("memory does not fail");
                    thread::yield_now();
                }
                worker
            })
        }));
    }

    fn stop(&mut self) -> io::Result<Vec<MemoryWorker>> {
        self.halt.store(true, Ordering::Relaxed);
        Ok(mem::take(&mut self.threads).into_iter().map(|thread| thread.join().expect("no panic")).collect())
    }
}

/// A machine whose interface has this number of queues.
fn with_queues(network: &MemoryNetwork, number: u8, queues: usize) -> Machine {
    Machine::with(network, number, Mode::STANDARD, interface(queues))
}

fn interface(queues: usize) -> Interface {
    memory_tun_of(NonZero::new(queues).expect("at least one"))
}

/// Two machines that are peers of each other, both up, with these numbers of queues.
fn pair_with(queues: [usize; 2]) -> [Machine; 2] {
    let network = network();
    let mut a = with_queues(&network, 1, queues[0]);
    let mut b = with_queues(&network, 2, queues[1]);
    a.configure(at(0), &[&b]);
    b.configure(at(0), &[&a]);
    for machine in [&mut a, &mut b] {
        machine.up();
        machine.turn(at(0));
    }
    [a, b]
}

/// Gives turns to all control threads and workers until none has anything left to do.
fn settle_all(now: Now, machines: &mut [Machine]) {
    settle(now, &mut machines.iter_mut().collect::<Vec<_>>());
}

/// Packet `number` of a flow. Each flow has ports of its own.
fn flow_packet(from: Ipv4Addr, to: Ipv4Addr, flow: u8, number: u32) -> Vec<u8> {
    let mut payload = vec![0; 8];
    payload[1] = flow;
    payload[3] = 9;
    payload.extend(number.to_be_bytes());
    let mut packet = packet(from, to, &payload);
    packet[9] = 17;
    packet
}

/// Takes the packets that have arrived and appends their numbers to their flows.
fn collect(machine: &Machine, flows: &mut BTreeMap<u8, Vec<u32>>) {
    while let Some(packet) = machine.stack.receive() {
        let number = packet[28..32].try_into().expect("four bytes");
        flows.entry(packet[21]).or_default().push(u32::from_be_bytes(number));
    }
}

/// Enough flows to use all queues.
const FLOWS: u8 = 12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The first packets wait for a handshake, and handshake messages arrive at any queue.
    #[test]
    fn every_packet_of_every_flow_arrives_once_and_in_order(
        queues in prop::array::uniform2(1..6_usize),
        steps in prop::collection::vec((0..20_u8, 0..FLOWS, 1..20_u8), 1..300),
    ) {
        let mut machines = pair_with(queues);
        let addresses = [machines[0].inner, machines[1].inner];
        let mut sent = [[0; FLOWS as usize]; 2];
        let mut arrived = [BTreeMap::new(), BTreeMap::new()];
        let mut settled = false;
        for (what, flow, count) in steps {
            let side = usize::from(flow % 2);
            match usize::from(what) {
                // Only a few, because a device keeps a bounded number of packets until there is a session.
                0..8 => for _ in 0..count.min(4) {
                    let number = &mut sent[side][usize::from(flow)];
                    machines[side].stack.send(&flow_packet(addresses[side], addresses[1 - side], flow, *number));
                    *number += 1;
                },
                8..11 => {
                    machines[side].control(at(1));
                }
                place => {
                    let _ = machines[side].carry(at(1), place - 11);
                }
            }
            collect(&machines[1 - side], &mut arrived[side]);
            if !settled && sent.iter().any(|sent| sent.iter().sum::<u32>() > 100) {
                settle_all(at(1), &mut machines);
                settled = true;
            }
        }
        settle_all(at(2), &mut machines);
        for side in [0, 1] {
            collect(&machines[1 - side], &mut arrived[side]);
            for flow in 0..FLOWS {
                let numbers = arrived[side].remove(&flow).unwrap_or_default();
                let all: Vec<_> = (0..sent[side][usize::from(flow)]).collect();
                prop_assert_eq!(numbers, all, "flow {}", flow);
            }
        }
        let drops = machines.each_ref().map(|machine| machine.engine.drops().to_string());
        prop_assert_eq!((machines[0].all_dropped(), machines[1].all_dropped()), (0, 0), "{:?}", drops);
    }
}

#[test]
fn the_crypto_pool_seals_a_backlog_in_order() {
    for queues in [2, 4] {
        let mut machines = pair_with([queues, 1]);
        let [a, b] = [0, 1].map(|place: usize| machines[place].inner);
        machines[0].stack.send(&flow_packet(a, b, 0, 0));
        settle_all(at(1), &mut machines);
        // Several batches for each queue, with packets of all sizes and super-packets.
        for number in 1..3000 {
            let flow = (number % u32::from(FLOWS)) as u8;
            let mut packet = flow_packet(a, b, flow, number);
            packet.resize(32 + number as usize * 7 % 1380, 0);
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            machines[0].stack.send(&packet);
        }
        let stream = Stream::between(a, b, 40 * 1368);
        for _ in 0..20 {
            machines[0].stack.send_super(stream.super_header(1368, 0), &stream.bytes(true));
        }
        settle_all(at(1), &mut machines);
        let mut flows = BTreeMap::<_, Vec<_>>::new();
        let mut segments = 0;
        while let Some(packet) = machines[1].stack.receive() {
            if packet[9] == 6 {
                segments += 1;
                continue;
            }
            let number = u32::from_be_bytes(packet[28..32].try_into().expect("four bytes"));
            flows.entry(packet[21]).or_default().push(number);
        }
        assert_eq!(segments, 20 * 40);
        for (flow, numbers) in &mut flows {
            let first = if *flow == 0 { 0 } else { u32::from(*flow) };
            assert!(
                numbers.iter().copied().eq((first..3000).step_by(FLOWS.into())),
                "flow {flow}: {numbers:?}"
            );
        }
        assert_eq!(flows.len(), usize::from(FLOWS));
        assert_eq!((machines[0].all_dropped(), machines[1].all_dropped()), (0, 0));
        let seen = machines[0].network.seen();
        let counter = |datagram: &[u8]| (datagram[4..8].to_vec(), datagram[8..16].to_vec());
        let data: Vec<_> = seen.iter().filter(|(_, _, datagram)| datagram[0] == 4).collect();
        let counters: BTreeSet<_> = data.iter().map(|(_, _, datagram)| counter(datagram)).collect();
        assert_eq!(counters.len(), data.len(), "no session uses a counter twice");
    }
}

#[test]
fn threads_carry_all_flows_in_order() {
    let network = network();
    let restless = |number, queues| {
        Machine::with_runner(&network, number, Mode::STANDARD, interface(queues), Restless::default())
    };
    let (mut a, mut b) = (restless(1, 4), restless(2, 3));
    a.configure(at(0), &[&b]);
    b.configure(at(0), &[&a]);
    for machine in [&mut a, &mut b] {
        machine.up();
        machine.turn(at(0));
    }
    const COUNT: u32 = 2000;
    let mut arrived = BTreeMap::new();
    for number in 0..COUNT {
        for flow in 0..FLOWS {
            a.stack.send(&flow_packet(a.inner, b.inner, flow, number));
        }
        a.turn(at(1));
        b.turn(at(1));
        collect(&b, &mut arrived);
        // Before anything else is sent, the first packets of all flows wait for the session.
        while number == 0 && arrived.values().map(Vec::len).sum::<usize>() < usize::from(FLOWS) {
            a.turn(at(1));
            b.turn(at(1));
            collect(&b, &mut arrived);
        }
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while arrived.values().map(Vec::len).sum::<usize>() < COUNT as usize * usize::from(FLOWS)
        && std::time::Instant::now() < deadline
    {
        a.turn(at(1));
        b.turn(at(1));
        collect(&b, &mut arrived);
    }
    for flow in 0..FLOWS {
        assert!(arrived[&flow].iter().copied().eq(0..COUNT), "flow {flow}: {:?}", arrived[&flow]);
    }
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
    // The threads end with the engines.
    for mut machine in [a, b] {
        machine.down();
        machine.turn(at(2));
        assert!(machine.engine.udp().is_none());
        assert!(network.host(machine.engine_address()).bind(PORT, 0).is_ok(), "the port is closed at once");
    }
}

#[test]
fn a_change_of_port_applies_to_all_queues() {
    let mut machines = pair_with([3, 2]);
    let now = at(1);
    for flow in 0..FLOWS {
        machines[0].stack.send(&flow_packet(machines[0].inner, machines[1].inner, flow, 0));
    }
    settle_all(now, &mut machines);
    let squatter = machines[0].network.bind(999, 0).expect("free");
    let refused = Reply::Refused(Errno(libc::EADDRINUSE));
    assert_eq!(machines[0].set(now, "listen_port=999\nfwmark=3"), refused);
    assert!(machines[0].get(now).contains(&format!("listen_port={PORT}\n")));
    drop(squatter);
    assert_eq!(machines[0].set(now, "listen_port=999\nfwmark=3"), Reply::Done);
    assert!(machines[0].network.bind(PORT, 0).is_ok(), "the old port is closed");
    assert_eq!(
        machines[0].network.bind(999, 0).map(drop).unwrap_err().raw_os_error(),
        Some(libc::EADDRINUSE)
    );
    for flow in 0..FLOWS {
        machines[0].stack.send(&flow_packet(machines[0].inner, machines[1].inner, flow, 1));
    }
    settle_all(now, &mut machines);
    let mut arrived = BTreeMap::new();
    collect(&machines[1], &mut arrived);
    assert!((0..FLOWS).all(|flow| arrived[&flow] == [0, 1]), "{arrived:?}");
    assert!(machines[1].get(now).contains("endpoint=192.0.2.1:999\n"), "the peer has noticed the new port");
}

#[test]
fn packets_that_wait_for_a_removed_peer_are_dropped() {
    let mut machines = pair_with([3, 1]);
    let now = at(1);
    let send_all = |machines: &[Machine; 2]| {
        for flow in 0..FLOWS {
            machines[0].stack.send(&flow_packet(machines[0].inner, machines[1].inner, flow, 0));
        }
    };
    send_all(&machines);
    settle_all(now, &mut machines);
    let mut arrived = BTreeMap::new();
    collect(&machines[1], &mut arrived);
    assert_eq!(arrived.len(), usize::from(FLOWS));
    // Without sessions, the packets are staged. Then the peer is removed.
    machines[0].down();
    machines[0].turn(now);
    machines[0].up();
    machines[0].turn(now);
    send_all(&machines);
    for place in 0..2 {
        let _ = machines[0].carry(now, 1 + place);
    }
    let key = machines[1].public_key().to_hex();
    assert_eq!(machines[0].set(now, &format!("public_key={key}\nremove=true")), Reply::Done);
    settle_all(now, &mut machines);
    assert_eq!(
        machines[0].dropped("no-peer-for-destination") + machines[0].dropped("forgotten"),
        u64::from(FLOWS)
    );
    collect(&machines[1], &mut arrived);
    assert!(arrived.values().all(|numbers| numbers == &[0]), "{arrived:?}");
    // When the peer is back, the queues work as before.
    let later = at(10);
    let [a, b] = &mut machines;
    a.configure(later, &[b]);
    send_all(&machines);
    settle_all(later, &mut machines);
    collect(&machines[1], &mut arrived);
    assert!(arrived.values().all(|numbers| numbers == &[0, 0]), "{arrived:?}");
}

#[test]
fn workers_follow_changes_of_the_mtu_and_the_source_check() {
    let mut machines = pair_with([2, 2]);
    let now = at(1);
    // Among the flows are some of the second queue.
    for mtu in [1420, 9000] {
        machines[0].stack.tell(TunEvent::State(TunState { up: true, mtu }));
        machines[0].turn(now);
        for flow in 0..FLOWS {
            let mut large = flow_packet(machines[0].inner, machines[1].inner, flow, 0);
            large.resize(1419, 0);
            large[2..4].copy_from_slice(&1419_u16.to_be_bytes());
            machines[0].stack.send(&large);
        }
        let before = machines[0].network.seen().len();
        settle_all(now, &mut machines);
        let seen = machines[0].network.seen();
        let data = seen[before..].iter().filter(|(from, _, datagram)| {
            *from == machines[0].endpoint() && datagram[0] == 4 && datagram.len() > 1000
        });
        let lengths: Vec<_> = data.map(|(_, _, datagram)| datagram.len()).collect();
        assert_eq!(lengths, [mtu.min(1424) + DATA_OVERHEAD; FLOWS as usize]);
    }
    let mut arrived = BTreeMap::new();
    collect(&machines[1], &mut arrived);
    let stranger = Ipv4Addr::new(10, 9, 9, 9);
    for (check, passes) in [("allowed-ips", false), ("off", true), ("allowed-ips", false)] {
        assert_eq!(machines[1].set(now, &format!("source_check={check}")), Reply::Done);
        let mut arrived = BTreeMap::new();
        for flow in 0..FLOWS {
            machines[0].stack.send(&flow_packet(stranger, machines[1].inner, flow, 0));
        }
        settle_all(now, &mut machines);
        collect(&machines[1], &mut arrived);
        assert_eq!(arrived.len(), if passes { usize::from(FLOWS) } else { 0 }, "{check}");
    }
}

#[test]
fn a_flood_of_handshakes_at_a_worker_is_bounded() {
    let mut machines = pair_with([2, 2]);
    let mut initiation = [0; 148];
    initiation[0] = 1;
    let to = machines[1].endpoint();
    // From enough addresses that both queues get some.
    for number in 0..3000_u16 {
        let from = Ipv4Addr::new(198, 51, 100, (number % 200) as u8);
        inject(&machines[1].network, from.into(), to, &initiation);
    }
    for _ in 0..100 {
        let _ = machines[1].carry(at(1), 1);
    }
    let busy = machines[1].dropped("device-busy");
    assert!(busy > 500, "{busy} of about 1,500");
    settle_all(at(1), &mut machines);
    let drops: Vec<_> = machines[1].engine.drops().iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(machines[1].all_dropped(), 3000, "each of them is counted: {drops:?}");
    machines[0].stack.send(&flow_packet(machines[0].inner, machines[1].inner, 0, 0));
    settle_all(at(2), &mut machines);
    assert!(machines[1].stack.receive().is_some(), "the device still answers");
}

/// Sends `count` numbered packets from the first machine to the second, without giving the latter a turn. Returns the
/// datagrams that carry them.
fn backlog(machines: &mut [Machine; 2], count: u32) -> Vec<Vec<u8>> {
    let [a, b] = [0, 1].map(|place: usize| machines[place].inner);
    machines[0].stack.send(&flow_packet(a, b, 0, 0));
    settle_all(at(1), machines);
    assert!(machines[1].stack.receive().is_some());
    let before = machines[0].network.seen().len();
    for number in 0..count {
        machines[0].stack.send(&flow_packet(a, b, 0, number));
    }
    while machines[0].turn(at(1)) == NextTurn::Now {}
    machines[0].network.seen()[before..].iter().map(|(_, _, datagram)| datagram.clone()).collect()
}

#[test]
fn the_crypto_pool_opens_a_backlog_and_copies_and_forgeries_are_dropped() {
    // The pool has two helpers, none and one.
    for queues in [2, 3, 4] {
        let mut machines = pair_with([1, queues]);
        let datagrams = backlog(&mut machines, 3000);
        assert_eq!(datagrams.len(), 3000);
        // In the same turns arrive a copy of each datagram, and a forgery of each that would move the replay window.
        let to = machines[1].endpoint();
        for datagram in &datagrams {
            let mut forged = datagram.clone();
            forged[12] ^= 1;
            for datagram in [datagram, &forged] {
                inject(&machines[1].network, Ipv4Addr::new(198, 51, 100, 7).into(), to, datagram);
            }
        }
        settle_all(at(1), &mut machines);
        let mut flows = BTreeMap::new();
        collect(&machines[1], &mut flows);
        let mut numbers = flows.remove(&0).unwrap_or_default();
        // The copies may arrive at another queue than the originals, and before some of them.
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..3000), "{queues} queues");
        assert_eq!(machines[1].dropped("replayed"), 3000);
        assert_eq!(machines[1].all_dropped(), 6000);
    }
}

#[test]
fn the_crypto_pool_opens_a_backlog_in_order() {
    for queues in [2, 3, 4, 5] {
        let mut machines = pair_with([1, queues]);
        backlog(&mut machines, 5000);
        settle_all(at(1), &mut machines);
        let mut flows = BTreeMap::new();
        collect(&machines[1], &mut flows);
        assert!(flows[&0].iter().copied().eq(0..5000), "{queues} queues");
        assert_eq!(machines[1].all_dropped(), 0);
    }
}

#[test]
fn a_backlog_from_a_removed_peer_is_dropped() {
    let mut machines = pair_with([1, 2]);
    backlog(&mut machines, 3000);
    // After one turn of each queue, the peer is removed.
    machines[1].turn(at(1));
    let _ = machines[1].carry(at(1), 1);
    let key = machines[0].public_key().to_hex();
    assert_eq!(machines[1].set(at(1), &format!("public_key={key}\nremove=true")), Reply::Done);
    let mut flows = BTreeMap::new();
    collect(&machines[1], &mut flows);
    let before = flows.remove(&0).unwrap_or_default();
    settle_all(at(1), &mut machines);
    collect(&machines[1], &mut flows);
    assert!(flows.is_empty(), "no batch is away between turns");
    assert!(before.iter().copied().eq(0..before.len() as u32) && (1..3000).contains(&before.len()));
    assert_eq!(machines[1].dropped("unknown-index"), 3000 - before.len() as u64);
}

#[test]
fn what_a_worker_has_staged_and_signalled_survives_a_change_of_the_port() {
    let mut machines = pair_with([2, 1]);
    let sent = packet(machines[0].inner, machines[1].inner, b"without a session");
    machines[0].stack.send_by(1, &sent);
    machines[0].carry(at(1), 1);
    assert_eq!(machines[0].set(at(1), "listen_port=1000"), Reply::Done);
    settle_all(at(1), &mut machines);
    assert_eq!(machines[1].stack.receive(), Some(sent));

    // Once more, with the news that a timer was armed.
    machines[0].stack.send_by(1, &packet(machines[0].inner, machines[1].inner, b"without an answer"));
    machines[0].carry(at(40), 1);
    assert_eq!(machines[0].set(at(40), "listen_port=1001"), Reply::Done);
    let NextTurn::Wait(Some(next)) = machines[0].turn(at(40)) else { panic!("a timer runs") };
    assert!(next <= at(56).monotonic, "{next:?}");
    assert_eq!(machines[0].all_dropped(), 0);

    // Going down ends what waits, and counts it.
    machines[0]
        .stack
        .send_by(1, &packet(machines[0].inner, Ipv4Addr::new(10, 0, 0, 2), b"too old a session"));
    machines[0].carry(at(400), 1);
    machines[0].down();
    machines[0].turn(at(400));
    assert_eq!(machines[0].dropped("forgotten"), 1);
}

#[test]
fn a_turn_waits_once_for_room_in_the_send_buffer_however_many_batches_it_sends() {
    let mut machines = pair_with([3, 1]);
    let sent = packet(machines[0].inner, machines[1].inner, &[7; 1300]);
    machines[0].stack.send_by(1, &sent);
    settle_all(at(1), &mut machines);
    let network = machines[0].network.clone();
    network.get_stuck();
    for _ in 0..1000 {
        machines[0].stack.send_by(1, &sent);
    }
    machines[0].carry(at(2), 1);
    assert_eq!(network.waits(), 1);
    assert!(machines[0].dropped("not-sent") > 200, "several batches");
}

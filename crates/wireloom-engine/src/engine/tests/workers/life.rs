//! The life of engines with several queues, under virtual time: sessions are renewed and expire, ports move, peers and
//! interfaces go and come back, workers are stopped and started, and engines are replaced by successors, between any
//! two turns of any thread.

use super::*;

/// Two machines that are peers, and what came out of them.
struct Pair {
    machines: [Machine; 2],
    /// Seconds since the start.
    time: u64,
    ports: [u16; 2],
    sent: u32,
    /// The numbers of the packets that came out at either end.
    arrived: [BTreeSet<u32>; 2],
}

impl Pair {
    fn new(queues: [usize; 2]) -> Self {
        Self { machines: pair_with(queues), time: 1, ports: [PORT; 2], sent: 0, arrived: Default::default() }
    }

    fn now(&self) -> Now {
        at(self.time)
    }

    fn send(&mut self, side: usize, flow: u8) {
        let [from, to] = [side, 1 - side].map(|side| self.machines[side].inner);
        self.machines[side].stack.send(&flow_packet(from, to, flow, self.sent));
        self.sent += 1;
    }

    fn set(&mut self, side: usize, lines: &str) {
        assert_eq!(self.machines[side].set(at(self.time), lines), Reply::Done);
    }

    /// Adds the other machine as a peer, at the port that it has now, or corrects that.
    fn introduce(&mut self, side: usize) {
        let other = &self.machines[1 - side];
        let endpoint = SocketAddr::new(other.engine_address(), self.ports[1 - side]);
        let (key, inner) = (other.public_key().to_hex(), other.inner);
        self.set(side, &format!("public_key={key}\nendpoint={endpoint}\nallowed_ip={inner}/32"));
    }

    /// One event at one of the machines.
    fn step(&mut self, (what, side, count): (u8, usize, u8)) {
        let now = self.now();
        let key = self.machines[1 - side].public_key().to_hex();
        match what {
            0..8 => (0..count).for_each(|flow| self.send(side, flow % FLOWS)),
            8..14 => drop(self.machines[side].control(now)),
            14..20 => drop(self.machines[side].carry(now, usize::from(count) % 4)),
            20 => self.time += 7 * u64::from(count),
            21 => {
                self.ports[side] = PORT + u16::from(count);
                self.set(side, &format!("listen_port={}", self.ports[side]));
            }
            22 => self.set(side, &format!("public_key={key}\nremove=true")),
            23 => self.introduce(side),
            24 => self.machines[side].down(),
            25 => self.machines[side].up(),
            26 => {
                let mtu = 1280 + usize::from(count);
                self.machines[side].stack.tell(TunEvent::State(TunState { up: true, mtu }));
            }
            // What happens between the copy and the stop does not matter.
            27 => self.machines[side].hand_over(now, |machine| {
                for queue in 0..4 {
                    let _ = machine.carry(now, queue);
                }
                let _ = machine.control(now);
            }),
            _ => self
                .set(side, &format!("source_check={}", if count % 2 == 0 { "off" } else { "allowed-ips" })),
        }
        self.collect();
    }

    /// Takes what has arrived. No packet arrives twice.
    fn collect(&mut self) {
        for side in [0, 1] {
            while let Some(packet) = self.machines[side].stack.receive() {
                // Others are errors about packets that could not be sent.
                if packet[9] == 17 {
                    let number = u32::from_be_bytes(packet[28..32].try_into().expect("four bytes"));
                    assert!(self.arrived[side].insert(number), "{number} arrived twice");
                }
            }
        }
    }

    /// Lets this many seconds pass, with turns for everybody.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds.div_ceil(5) {
            self.time += 5;
            settle_all(self.now(), &mut self.machines);
            self.collect();
        }
    }

    /// Ends all that was begun, and shows that the machines are still connected.
    fn end(&mut self) {
        self.machines.iter().for_each(Machine::up);
        // A handshake message that is still on its way from a closed port would make its receiver answer there.
        self.pass(5);
        [0, 1].into_iter().for_each(|side| self.introduce(side));
        self.pass(200);
        for side in [0, 1] {
            self.send(side, 0);
            self.pass(15);
            assert!(self.arrived[1 - side].contains(&(self.sent - 1)), "the last packet of {side}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_arrives_twice_no_counter_is_used_twice_and_the_machines_find_each_other_again(
        queues in prop::array::uniform2(1..4_usize),
        steps in prop::collection::vec((0..29_u8, 0..2_usize, 1..20_u8), 1..250),
    ) {
        let mut pair = Pair::new(queues);
        steps.into_iter().for_each(|step| pair.step(step));
        pair.end();
        let mut used = BTreeSet::new();
        for (_, to, datagram) in pair.machines[0].network.seen() {
            if datagram[0] == 4 {
                let message = (to.ip(), datagram[4..8].to_vec(), datagram[8..16].to_vec());
                prop_assert!(used.insert(message), "a counter is used twice");
            }
        }
    }
}

//! Instances of the agent on the kernel's WireGuard. They hand nothing over: the sessions are the kernel's.

use std::{collections::BTreeMap, io::ErrorKind, time::Duration};

use wireloom_kernel::supervisor::State;
use wireloom_lab::{FAMILIES, Layout, Node, Nonces, Pinger, Promise, agent::Agent};

use super::backend::link_news;
use crate::{
    agent::instances::{Pod, health, serves},
    fixtures::fleet::Fleet,
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

#[test]
fn the_device_is_left_alone_while_pods_take_over_die_and_are_deleted() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let first = Pod::start(&fleet, "pod-0");
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let serves = |pod: &Pod| {
        serves(&fleet, &pod.agent, pod.name);
        // It has no device, and none is wanted.
        let status = pod.supervisor(&fleet);
        assert_eq!(
            (status.state, status.process, status.descriptors),
            (State::Idle, None, 0),
            "{}",
            pod.name
        );
    };
    serves(&first);
    let news = a.host.space.inside(link_news).unwrap();
    news.set_non_blocking(true).unwrap();
    let before = Sessions::of(a);
    let nonces = Nonces::watch(fleet.lab.underlay()).unwrap();
    let interval = Duration::from_millis(10);
    let pingers = FAMILIES.map(|family| Pinger::start(&a.pods[0], &b.pods[0], family, interval).unwrap());

    // It takes over and dies, so the first one serves again.
    let second = Pod::start(&fleet, "pod-1");
    serves(&second);
    assert!(health(&fleet, first.name, "ready").contains("another instance"));
    second.kill();
    serves(&first);
    // The next one takes over, and the first one is deleted.
    let third = Pod::start(&fleet, "pod-2");
    serves(&third);
    first.delete();
    let so_far = pingers.each_ref().map(Pinger::answered);
    fleet.wait("pings afterwards", |_| {
        pingers.iter().zip(so_far).all(|(pinger, before)| pinger.answered() > before + 20)
    });
    serves(&third);

    before.assert_go_on(&Sessions::of(a));
    // Of other links, such as a bridge's ports, the kernel may tell what it likes.
    loop {
        match news.recv_from_full() {
            Ok((message, _)) => {
                let is_ours = message.windows(4).any(|bytes| bytes == b"wg0\0");
                assert!(!is_ours, "the kernel announces a change of wg0: {message:?}");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    let reports = pingers.map(|pinger| pinger.stop().unwrap());
    println!("figure: pods on the kernel's WireGuard take over, die and are deleted: {reports:?}");
    assert!(reports.iter().all(|report| report.lost == 0), "{reports:?}\n{}", fleet.logs());
    let nonces = nonces.report().unwrap();
    assert_eq!((nonces.twice, nonces.plaintext), (0, 0), "{nonces:?}");
    let refusal = a.run(&format!("{} upgrade wg0", wireloom().display())).unwrap_err().to_string();
    assert!(refusal.contains("with the kernel's WireGuard there is nothing to do"), "{refusal}");
    third.delete();
}

/// The kernel's device and its sessions.
#[derive(Debug)]
struct Sessions {
    link: String,
    /// Of each peer: when the last handshake was, in seconds since 1970, and bytes received and sent.
    peers: BTreeMap<String, [u64; 3]>,
}

impl Sessions {
    fn of(node: &Node) -> Self {
        let mut peers = BTreeMap::<_, Vec<u64>>::new();
        for what in ["latest-handshakes", "transfer"] {
            for line in node.run(&format!("wg show wg0 {what}")).unwrap().lines() {
                let (peer, numbers) = line.split_once('\t').unwrap();
                let numbers = numbers.split('\t').map(|number| number.parse::<u64>().unwrap());
                peers.entry(peer.to_owned()).or_default().extend(numbers);
            }
        }
        let link = node.run("ip -d -o link show wg0").unwrap();
        assert!(link.contains("wireguard"), "{link}");
        assert_eq!(peers.len(), 1, "{peers:?}");
        Self { link, peers: peers.into_iter().map(|(key, all)| (key, all.try_into().unwrap())).collect() }
    }

    /// Nothing began anew. A session in use is replaced after 120 s (REKEY_AFTER_TIME, section 6.1 of the WireGuard
    /// paper).
    fn assert_go_on(&self, after: &Self) {
        assert_eq!(self.link, after.link);
        assert!(self.peers.keys().eq(after.peers.keys()), "{self:?} {after:?}");
        for ([handshake, received, sent], then) in self.peers.values().zip(after.peers.values()) {
            let same = *handshake == then[0] || handshake + 115 <= then[0];
            assert!(same && *handshake > 0, "{self:?} {after:?}");
            assert!(*received < then[1] && *sent < then[2], "{self:?} {after:?}");
        }
    }
}

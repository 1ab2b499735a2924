//! A pod with a borrowed address, as Calico's IPAM lends it: its node finds it in its own kernel.

use std::time::{Duration, Instant};

use wireloom_lab::{Addresses, Pinger, Place, Promise, agent};
use wireloom_plan::routing::Family;

use super::stores::{Etcd, fleet};

/// An address of the pool, in no node's block.
const ADDRESS: &str = "10.161.99.7";

/// What Calico's CNI plug-in makes for a pod, by an interface that is called as it calls it.
const POD: &str = "link add cali0 type veth peer name eth0 netns lent
    link set cali0 up
    route add 10.161.99.7 dev cali0";
const INSIDE: &str = "address add 10.161.99.7/32 dev eth0
    link set eth0 up
    route add 169.254.1.1 dev eth0
    route add default via 169.254.1.1 dev eth0";

#[test]
fn a_borrowed_address_is_published_and_encrypted_and_taken_back() {
    let mut fleet = fleet(2);
    let etcd = Etcd::start(&fleet.lab);
    etcd.put_pool("v4", "10.161.0.0/16");
    etcd.put_pool("v6", "fd00:10:161::/48");
    fleet.start();
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    // BIRD says so, before or after.
    a.run(&format!("ip route add {ADDRESS} via {}", b.host.addresses.v4)).unwrap();
    b.run("ip netns add lent").unwrap();
    let begun = Instant::now();
    b.host.space.feed("ip -batch -", POD).unwrap();
    b.host.space.feed("ip -n lent -batch -", INSIDE).unwrap();
    b.host.space.set_sysctls(&[("net/ipv4/conf/cali0/proxy_arp", "1")]).unwrap();
    let is_routed = || a.run("ip route show table 15700").unwrap().contains("10.161.99.7 dev wg0");
    fleet.wait("the other node to know the address", |_| is_routed());
    println!("figure: a borrowed address is known to the other node after {:?}", begun.elapsed());

    let addresses = Addresses { v4: ADDRESS.parse().unwrap(), ..a.pods[0].addresses };
    let lent = Place { name: "the pod".into(), space: b.host.space.clone(), addresses };
    let pinger = Pinger::start(&a.pods[0], &lent, Family::V4, Duration::from_millis(10)).unwrap();
    fleet.wait("answers through the tunnel", |_| pinger.answered() >= 20);
    let received = b.run("wg show wg0 transfer").unwrap();
    fleet.wait("more answers", |_| pinger.answered() >= 100);
    assert_ne!(b.run("wg show wg0 transfer").unwrap(), received);
    pinger.stop().unwrap();

    // The other node goes on refusing it in plaintext for a minute.
    let published = || agent::log(b).unwrap().matches("publishing this node's record: 2 workloads").count();
    let before = published();
    b.run("ip link del cali0").unwrap();
    fleet.wait("the address to be given back", |_| published() > before);
}

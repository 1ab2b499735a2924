//! What people should know of a machine is read as it is.

use std::net::IpAddr;

use wireloom_kernel::{Linux, state::StateDir};
use wireloom_lab::{Holder, become_root};
use wireloom_plan::{
    health::{Action, EndpointRoute, Hook, Machine, MarkUser},
    settings::Settings,
};

const MACHINE: [&str; 27] = [
    "ip link set lo up",
    "ip link add eth0 type veth peer name eth1",
    "ip link set eth0 mtu 1450 up",
    "ip link set eth1 up",
    "ip address add 192.0.2.1/24 dev eth0",
    "ip address add 2001:db8::1/64 dev eth0 nodad",
    "ip tuntap add wg0 mode tun",
    "ip link set wg0 up",
    "ip route add 198.51.100.0/24 dev wg0",
    "ip route add 10.161.2.0/24 via 192.0.2.2",
    "ip route add 10.0.0.0/8 via 192.0.2.2",
    "ip -6 route add fd61:0:0:2::/64 via 2001:db8::2",
    "ip route add throw 10.161.3.0/24",
    "ip route add 203.0.113.0/24 via 192.0.2.3 mtu 1400",
    // Packets with our mark go elsewhere.
    "ip route add 192.0.2.9/32 dev wg0 table 7",
    "ip rule add fwmark 0xa/0xa lookup 7 pref 20",
    "ip rule add from 10.161.1.0/24 lookup 1000 pref 50",
    "ip route add default via 192.0.2.4 table 1000",
    "ip rule add to 10.0.0.0/8 blackhole pref 51",
    "ip -6 rule add from fd61::/48 goto 32766 pref 52",
    "ip rule add lookup 2000 pref 200",
    "nft add table ip filter",
    "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
    "nft add chain ip filter OUTPUT { type filter hook output priority 0 ; policy drop ; }",
    "nft add table ip6 kube-proxy",
    "nft add chain ip6 kube-proxy in { type filter hook input priority 0 ; policy accept ; }",
    "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=0",
];

#[test]
fn rules_routes_chains_and_ways_to_endpoints_are_read() {
    become_root().unwrap();
    let (_holder, space) = Holder::new("a machine").unwrap();
    for line in MACHINE {
        space.run(line).unwrap();
    }
    let state = tempfile::tempdir().unwrap();
    let state = StateDir::at(state.path());
    let endpoints = ["192.0.2.9", "192.0.2.2", "198.51.100.1", "203.0.113.5", "2001:db8::2", "192.88.99.1"];
    let endpoints = endpoints.map(|address| address.parse::<IpAddr>().unwrap());
    let machine: Machine = space
        .inside(|| {
            let mut kernel = Linux::open("wg0", 1, state).unwrap();
            assert_eq!(kernel.drops().unwrap(), None, "there is no device");
            let workloads = ["10.161.0.0/16", "fd61::/48"].map(|prefix| prefix.parse().unwrap());
            let (machine, errors) = kernel.machine(&Settings::defaults("a"), workloads.into(), endpoints);
            assert!(errors.is_empty(), "{errors:?}");
            machine
        })
        .unwrap();

    assert!(machine.forwarding.v4 && !machine.forwarding.v6);
    let rules: Vec<String> = machine.rules.iter().map(ToString::to_string).collect();
    let expected = [
        "0: from all lookup local",
        "20: from all fwmark 0xa/0xa lookup 7",
        "50: from 10.161.1.0/24 lookup 1000",
        "51: from all to 10.0.0.0/8 blackhole",
        "200: from all lookup 2000",
        "32766: from all lookup main",
        "32767: from all lookup default",
        "0: from all lookup local",
        "52: from fd61::/48 goto 32766",
        "32766: from all lookup main",
    ];
    assert_eq!(rules, expected);
    assert_eq!(machine.rules[3].action, Action::Blackhole);
    assert_eq!(machine.tables.keys().copied().collect::<Vec<_>>(), [7, 254, 1000], "those before ours");
    let holds = |table: u32, prefix: &str| machine.tables[&table].contains(&prefix.parse().unwrap());
    assert!(holds(254, "10.161.2.0/24") && holds(254, "10.0.0.0/8") && holds(254, "fd61:0:0:2::/64"));
    assert!(!holds(254, "10.161.3.0/24"), "a throw route leads nowhere");
    assert!(!holds(254, "192.0.2.0/24") && !holds(7, "192.0.2.9/32"), "nothing of workloads");
    assert!(holds(1000, "0.0.0.0/0"));

    let droppers: Vec<_> =
        machine.droppers.iter().map(|chain| (&*chain.table, &*chain.chain, chain.hook)).collect();
    assert_eq!(droppers, [("filter", "FORWARD", Hook::Forward)]);
    assert_eq!(machine.mark_users, [MarkUser::KubeProxy].into());

    let by = |interface: &str, mtu| Some(EndpointRoute { interface: interface.into(), mtu });
    let ways = endpoints.map(|endpoint| machine.endpoint_routes[&endpoint].clone());
    let expected =
        [by("wg0", 1500), by("eth0", 1450), by("wg0", 1500), by("eth0", 1400), by("eth0", 1450), None];
    assert_eq!(ways, expected);
}

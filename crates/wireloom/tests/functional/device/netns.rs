//! What the kernel's own self-test of WireGuard (`tools/testing/selftests/wireguard/netns.sh`) asks of an interface and
//! the other modules do not: exact counters, long MTUs, NAT, tunnels in tunnels, addresses and routes that change, ICMP
//! errors, keys and allowed-IPs in odd numbers and shapes.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use wireloom_lab::{Layout, Node, PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::{node, process, request, run},
    fixtures::transfer::{streams, uninterrupted},
    fixtures::tunnel::{PORT, Program, Tunnel, all_answered, inner, ping},
    wireloom,
};

/// Both nodes' interfaces are made, and know each other's endpoints, but nothing was sent.
fn silent() -> Tunnel {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.set_endpoint(1, 0, Family::V4);
    tunnel
}

/// What `ping` with these words prints, whether answers come or not.
fn said(node: &Node, words: &str) -> String {
    let output = node.host.space.output(Command::new("ping").arg("-n").args(words.split(' '))).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The first request has to be answered. A device tries again after 5 s: an answer within 4 s needed no second try.
#[track_caller]
fn first_ping(node: &Node, to: IpAddr) {
    let said = said(node, &format!("-c1 -W4 {to}"));
    assert!(said.contains(" 1 received"), "{said}");
}

/// Makes a key pair on a node, its private half in the file `/run/NAME`. Returns the public half.
fn new_key(node: &Node, name: &str) -> String {
    let private = node.run("wg genkey").unwrap();
    node.host.space.write(&format!("/run/{name}"), &private).unwrap();
    node.host.space.feed("wg pubkey", &private).unwrap().trim().to_owned()
}

/// Packets that an interface of a node has sent so far.
fn sent_by(node: &Node, interface: &str) -> u64 {
    let interfaces = node.run("cat /proc/net/dev").unwrap();
    let (_, counters) = interfaces.split_once(&format!("{interface}:")).expect("the interface");
    // Eight of what was received, then bytes and packets sent (net/core/net-procfs.c).
    counters.split_whitespace().nth(9).unwrap().parse().unwrap()
}

#[test]
fn counters_mtus_sources_and_keys_are_as_the_kernels() {
    let tunnel = silent();
    let [near, far] = [0, 1].map(|place| tunnel.node(place));
    let ([near_v4, _], [far_v4, far_v6]) = (inner(0), inner(1));

    // Ten echo requests of 84 bytes, padded to 96, in messages of 32 bytes more; an initiation of 148 bytes, a
    // response of 92, and perhaps a keepalive.
    all_answered(far, &[format!("-c 10 -i 0.01 {near_v4}")], 10);
    for (place, all) in [(1, ["1372\t1428", "1372\t1460"]), (0, ["1428\t1372", "1460\t1372"])] {
        let counted = || all.contains(&&*tunnel.shown(place, "transfer")).then_some(());
        until(PATIENCE, "all to be counted", counted)
            .unwrap_or_else(|error| panic!("{error}: {}", tunnel.shown(place, "transfer")));
    }

    // The longest MTU that it tries, with datagrams in fragments, over both families.
    for (mtu, underlay) in [(34_736, Family::V4), (34_736, Family::V6), (1420, Family::V6)] {
        for (place, other) in [(0, 1), (1, 0)] {
            tunnel.node(place).run(&format!("ip link set wg0 mtu {mtu}")).unwrap();
            tunnel.set_endpoint(place, other, underlay);
        }
        for to in inner(1) {
            streams(&near.host.space, &far.host.space, to, 4, 16);
        }
    }

    // A more specific allowed-IP takes the peer its address away, though not its endpoint.
    tunnel.set_peer(0, 1, "allowed-ips 10.99.0.0/24,fd99::/64");
    let receiver = near.host.space.inside(|| UdpSocket::bind("10.99.0.1:1111").unwrap()).unwrap();
    let sender = far.host.space.inside(|| UdpSocket::bind("10.99.0.2:0").unwrap()).unwrap();
    let is_heard = |patience: Duration| {
        receiver.set_read_timeout(Some(patience)).unwrap();
        sender.send_to(b"X", "10.99.0.1:1111").unwrap();
        uninterrupted(|| receiver.recv_from(&mut [0; 2])).is_ok()
    };
    assert!(is_heard(PATIENCE));
    let specific = new_key(near, "specific");
    near.run(&format!("wg set wg0 peer {specific} allowed-ips {far_v4}/32")).unwrap();
    far.run("wg set wg0 listen-port 9997").unwrap();
    let refused = || {
        // A late segment of a stream counts, too.
        let counted = |line: &str| line.starts_with("source-not-allowed=") && !line.ends_with("=0");
        request(near, "get_drops=1\n\n").lines().any(counted)
    };
    assert!(!is_heard(Duration::from_millis(200)));
    until(PATIENCE, "the datagram to be refused", || refused().then_some(())).unwrap();
    near.run(&format!("wg set wg0 peer {specific} remove")).unwrap();
    let roamed = format!("[{}]:9997", far.host.addresses.v6);
    until(PATIENCE, "the peer to roam", || (tunnel.shown(0, "endpoints") == roamed).then_some(())).unwrap();

    // With another key a node begins anew at once.
    let public = new_key(near, "other-key");
    far.run(&format!(
        "wg set wg0 peer {} remove peer {public} allowed-ips 10.99.0.1/32,fd99::1/128",
        tunnel.keys[0].public
    ))
    .unwrap();
    near.run("wg set wg0 private-key /run/other-key").unwrap();
    first_ping(near, far_v4);
    first_ping(near, far_v6);
}

/// A client behind a router that masquerades and forgets idle connections after 2 s.
#[test]
fn keepalives_hold_a_way_through_nat_and_a_new_way_is_followed() {
    let layout = Layout { nodes: 3, pods: 0, ..Layout::default() };
    let tunnel = Tunnel::between(&[Program::Wireloom; 2], &layout);
    let [client, server, router] = [0, 1, 2].map(|place| tunnel.node(place));
    let [client_out, server_out, router_out] =
        [client, server, router].map(|node| node.host.addresses.v4.to_string());
    for setting in ["all", "default", "eth0"] {
        let path = format!("net/ipv4/conf/{setting}/send_redirects");
        router.host.space.set_sysctls(&[(&path, "0")]).unwrap();
    }
    client.run(&format!("ip route add {server_out} via {router_out}")).unwrap();
    let translate = |to: &str| {
        let table = format!(
            "table ip nat\ndelete table ip nat\ntable ip nat {{ chain postrouting {{\n \
             type nat hook postrouting priority 100\n ip saddr {client_out} ip daddr {server_out} udp dport {PORT} \
             snat to {to}\n }}\n }}\n"
        );
        router.host.space.feed("nft -f -", &table).unwrap();
    };
    translate(&router_out);
    let forget_after = |seconds: &str| {
        let timeouts = ["udp_timeout", "udp_timeout_stream"];
        let paths = timeouts.map(|timeout| format!("net/netfilter/nf_conntrack_{timeout}"));
        router.host.space.set_sysctls(&paths.each_ref().map(|path| (&**path, seconds))).unwrap();
    };
    forget_after("2");
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.set_peer(0, 1, "persistent-keepalive 1");
    tunnel.settle();
    assert_eq!(tunnel.shown(1, "endpoints"), format!("{router_out}:{PORT}"));
    // Longer than the router remembers: the server still reaches the client.
    std::thread::sleep(Duration::from_secs(3));
    // One of the keepalives may come late.
    until(PATIENCE, "an answer to the server", || ping(server, inner(0)[0]).then_some(())).unwrap();

    // The router forgets, and gives the connection another port. The first packet of the client tells the server.
    tunnel.set_peer(0, 1, "persistent-keepalive 0");
    let remembers = || router.run("cat /proc/net/nf_conntrack").unwrap().contains(&format!("dport={PORT} "));
    until(PATIENCE, "the router to forget", || (!remembers()).then_some(())).unwrap();
    // From here on no keepalive holds the way.
    forget_after("60");
    translate(&format!("{router_out}:40000"));
    first_ping(client, inner(1)[0]);
    assert_eq!(tunnel.shown(1, "endpoints"), format!("{router_out}:40000"));
    first_ping(server, inner(0)[0]);

    // A socket that is bound to the interface, and a mark that has its packets routed again.
    let mark =
        "table inet test { chain output {\n type route hook output priority -150\n meta mark set 1\n }\n }\n";
    for rules in ["", mark] {
        client.host.space.feed("nft -f -", rules).unwrap();
        let bound = said(client, &format!("-c1 -W4 -I wg0 {}", inner(1)[0]));
        assert!(bound.contains(" 1 received"), "{bound}");
    }

    // The server translates into the tunnel what the router sends. Without the peer the router hears so.
    let into = format!(
        "table ip nat {{ chain postrouting {{\n type nat hook postrouting priority 100\n \
         ip saddr {router_out} oifname wg0 snat to {}\n }}\n }}\n",
        inner(1)[0]
    );
    server.host.space.feed("nft -f -", &into).unwrap();
    router.run(&format!("ip route add {} via {server_out}", inner(0)[0])).unwrap();
    first_ping(router, inner(0)[0]);
    server.run(&format!("wg set wg0 peer {} remove", tunnel.keys[0].public)).unwrap();
    let unanswered = said(router, &format!("-c1 -W4 {}", inner(0)[0]));
    assert!(unanswered.contains("icmp_seq=1 Destination Host Unreachable"), "{unanswered}");
}

/// An error that somebody beyond the tunnel sends comes back through it.
#[test]
fn icmp_errors_of_the_other_end_come_back_through_the_tunnel() {
    let tunnel = silent();
    let [near, far] = [0, 1].map(|place| tunnel.node(place));
    let [from_v4, from_v6] = inner(1);
    tunnel.set_peer(
        0,
        1,
        &format!("allowed-ips {from_v4}/32,{from_v6}/128,198.51.100.0/24,2001:db8:51::/64"),
    );
    near.run("ip route add 198.51.100.0/24 dev wg0").unwrap();
    near.run("ip route add 2001:db8:51::/64 dev wg0").unwrap();
    tunnel.settle();
    // By default the kernel sends few errors to one host.
    far.host
        .space
        .set_sysctls(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")])
        .unwrap();
    for (route, to, from, words) in [
        ("unreachable 198.51.100.1", "198.51.100.1", from_v4, "Destination Host Unreachable"),
        ("prohibit 198.51.100.2", "198.51.100.2", from_v4, "Packet filtered"),
        ("unreachable 2001:db8:51::1", "2001:db8:51::1", from_v6, "Destination unreachable: No route"),
        (
            "prohibit 2001:db8:51::2",
            "2001:db8:51::2",
            from_v6,
            "Destination unreachable: Administratively prohibited",
        ),
    ] {
        far.run(&format!("ip route add {route}")).unwrap();
        let said = said(near, &format!("-c1 -W4 {to}"));
        assert!(said.contains(&format!("From {from} icmp_seq=1 {words}")), "{said}");
    }
    far.run("ip route add 198.51.100.3 dev eth0").unwrap();
    far.run("ip route add 2001:db8:51::3 dev eth0").unwrap();
    for (to, from, words) in [
        ("198.51.100.3", from_v4, "Time to live exceeded"),
        ("2001:db8:51::3", from_v6, "Time exceeded: Hop limit"),
    ] {
        let said = said(near, &format!("-c1 -W4 -t1 {to}"));
        assert!(said.contains(&format!("From {from} icmp_seq=1 {words}")), "{said}");
    }
}

#[test]
fn tunnels_run_in_tunnels_and_a_peer_behind_itself_makes_no_storm() {
    let tunnel = silent();
    let [near, far] = [0, 1].map(|place| tunnel.node(place));
    let keys = [near, far].map(|node| {
        node.run(&format!("{} device wg1", wireloom().display())).unwrap();
        new_key(node, "key1")
    });
    for (place, node) in [near, far].into_iter().enumerate() {
        let other = 1 - place;
        node.run(&format!(
            "wg set wg1 private-key /run/key1 listen-port 5 peer {} endpoint [{}]:5 \
             allowed-ips 10.98.0.{}/32,fd98::{}/128",
            keys[other],
            inner(other)[1],
            other + 1,
            other + 1
        ))
        .unwrap();
        node.run(&format!("ip address add 10.98.0.{}/24 dev wg1", place + 1)).unwrap();
        node.run(&format!("ip address add fd98::{}/64 dev wg1 nodad", place + 1)).unwrap();
        node.run("ip link set wg1 mtu 1340 up").unwrap();
    }
    let through: [IpAddr; 2] = ["10.98.0.2", "fd98::2"].map(|address| address.parse().unwrap());
    for to in through {
        until(PATIENCE, "a ping through both", || ping(near, to).then_some(())).unwrap();
        streams(&near.host.space, &far.host.space, to, 4, 16);
    }

    // Both in one interface: the way to one peer leads by way of the other.
    let [inside, _] = inner(1);
    near.run(&format!("wg set wg0 peer {} allowed-ips 10.97.0.2/32 endpoint {inside}:5", keys[1])).unwrap();
    near.run("ip address add 10.97.0.1/24 dev wg0").unwrap();
    let public = &tunnel.keys[0].public;
    far.run(&format!("wg set wg1 peer {public} allowed-ips 10.97.0.1/32")).unwrap();
    far.run("ip address add 10.97.0.2/24 dev wg1").unwrap();
    first_ping(near, "10.97.0.2".parse().unwrap());

    // The way to a peer leads by way of itself. Each round would be 60 bytes more, and beyond the MTU two packets.
    near.run(&format!("wg set wg0 peer {} endpoint 10.97.0.2:5", keys[1])).unwrap();
    let before = sent_by(near, "wg0");
    let unanswered = said(near, "-c10 -i0.002 -W1 10.97.0.2");
    assert!(unanswered.contains(" 0 received"), "{unanswered}");
    let packets = sent_by(near, "wg0") - before;
    assert!(packets < 1000, "{packets} packets");
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.settle();
}

/// The far end reaches the near one at an address that another interface has, and the near end finds another way when
/// a route that is better comes.
#[test]
fn answers_and_packets_take_the_address_of_their_way() {
    for (family, inside, prefix, second, single) in [
        (Family::V4, "10.50.0.1", 24, "192.168.1.101", "/32"),
        (Family::V6, "fd50::1", 64, "fd00:192:168:1::101", "/128 nodad"),
    ] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        tunnel.set_endpoint(0, 1, family);
        let [near, far] = [0, 1].map(|place| tunnel.node(place));
        let [near_out, far_out] = [near, far].map(|node| node.host.addresses.of(family));
        let [inside_out, second_out] =
            [inside, second].map(|address| SocketAddr::new(address.parse().unwrap(), PORT).to_string());
        near.run("ip link add inside type bridge").unwrap();
        near.run(&format!("ip address add {inside}/{prefix} dev inside")).unwrap();
        near.run("ip link set inside up").unwrap();
        far.run(&format!("ip route add {inside} via {near_out}")).unwrap();
        tunnel.set_peer(1, 0, &format!("endpoint {inside_out}"));
        first_ping(far, inner(0)[0]);
        assert_eq!(tunnel.shown(1, "endpoints"), inside_out);
        near.run("ip link delete inside").unwrap();
        tunnel.set_endpoint(1, 0, family);
        first_ping(far, inner(0)[0]);

        // A second interface to the same network. Its route takes precedence while packets flow by the first one.
        let cable = format!("ip link add second type veth peer name eth1 netns {}", near.pid());
        tunnel.lab.underlay().network_only().run(&cable).unwrap();
        tunnel.lab.underlay().run("ip link set second master underlay up").unwrap();
        near.run(&format!("ip address add {second}{single} dev eth1")).unwrap();
        near.run("ip link set eth1 up").unwrap();
        near.run(&format!("ip route add {far_out} dev eth0 src {near_out} metric 2")).unwrap();
        first_ping(near, inner(1)[0]);
        assert_eq!(tunnel.shown(1, "endpoints"), tunnel.endpoint(0, family).to_string());
        near.run(&format!("ip route add {far_out} dev eth1 src {second} metric 1")).unwrap();
        first_ping(near, inner(1)[0]);
        assert_eq!(tunnel.shown(1, "endpoints"), second_out);
        first_ping(far, inner(0)[0]);
    }
}

#[test]
fn long_lists_odd_keys_and_removals_are_taken_and_shown_as_the_kernel_does() {
    let lab = node();
    let node = &lab.nodes[0];
    let device = || assert!(run(node, "device wg0").status.success());
    let wg = |words: &str| node.run(&format!("wg {words}")).unwrap();
    let set = |configuration: &str| {
        node.host.space.write("/run/wg0.conf", configuration).unwrap();
        wg("setconf wg0 /run/wg0.conf");
    };
    device();
    let keys: Vec<_> = (0..41).map(|place| new_key(node, &format!("key{place}"))).collect();

    // 130,560 allowed-IPs of one peer; 52 of each of 40; a peer with some after 29 without any.
    let mut configuration =
        format!("[Interface]\nPrivateKey = {}[Peer]\nPublicKey = {}\n", wg("genkey"), keys[0]);
    for a in 1..=255 {
        for b in 0..=255 {
            let _ = writeln!(configuration, "AllowedIPs = {a}.{b}.0.0/16,{a}::{b}/128");
        }
    }
    set(&configuration);
    assert_eq!(wg("show wg0 allowed-ips").split_whitespace().count(), 255 * 256 * 2 + 1);
    let mut configuration = "[Interface]\n".to_owned();
    for (a, key) in (1..=40).zip(&keys) {
        let _ = writeln!(configuration, "[Peer]\nPublicKey = {key}");
        for b in 1..=52 {
            let _ = writeln!(configuration, "AllowedIPs = {a}.{b}.0.0/16");
        }
    }
    set(&configuration);
    let shown = wg("show wg0 allowed-ips");
    assert_eq!(shown.lines().count(), 40);
    assert!(shown.lines().all(|line| line.split_whitespace().count() == 53), "{shown}");
    let mut configuration = "[Interface]\n".to_owned();
    for key in &keys[..30] {
        let _ = writeln!(configuration, "[Peer]\nPublicKey = {key}");
    }
    configuration += "AllowedIPs = 255.2.3.4/32, abcd::255/128\n";
    set(&configuration);
    assert_eq!(wg("showconf wg0").matches("[Peer]").count(), 30);
    let all: Vec<_> = (1..=197).map(|n| format!("abcd::{n}")).collect();
    set("[Interface]\n");
    wg(&format!("set wg0 peer {}", keys[0]));
    wg(&format!("set wg0 peer {} allowed-ips {}", keys[1], all.join(",")));
    let shown = wg("show wg0 allowed-ips");
    let counts = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().skip(1).filter(|word| *word != "(none)").count()
    };
    assert_eq!((counts(&keys[0]), counts(&keys[1])), (0, 197));
    assert!(node.run("wg show doesnotexist").is_err());

    // Secrets that are taken away; a peer with the interface's own key, before and after it has the key.
    node.run("ip link delete wg0").unwrap();
    until(PATIENCE, "the device to end", || run(node, "device wg0").status.success().then_some(())).unwrap();
    let secret = wg("genpsk");
    node.host.space.write("/run/secret", &secret).unwrap();
    let private = node.host.space.read("/run/key0").unwrap().unwrap();
    wg(&format!("set wg0 private-key /run/key0 peer {} preshared-key /run/secret", keys[1]));
    assert_eq!(wg("show wg0 private-key"), private);
    assert_eq!(wg("show wg0 preshared-keys"), format!("{}\t{secret}", keys[1]));
    wg(&format!("set wg0 private-key /dev/null peer {} preshared-key /dev/null", keys[1]));
    assert_eq!(wg("show wg0 private-key"), "(none)\n");
    assert_eq!(wg("show wg0 preshared-keys"), format!("{}\t(none)\n", keys[1]));
    wg("set wg0 private-key /run/key1");
    assert_eq!((wg("show wg0 public-key").trim(), &*wg("show wg0 peers")), (&*keys[1], ""));
    wg(&format!("set wg0 peer {}", keys[1]));
    assert_eq!(wg("show wg0 peers"), "");
    wg("set wg0 private-key /run/key0");
    wg(&format!("set wg0 peer {}", keys[1]));
    assert_eq!(wg("show wg0 peers").trim(), keys[1]);
    // The bits that Curve25519 fixes are shown as they count.
    node.host.space.write("/run/unclamped", &format!("/{}", &private[1..])).unwrap();
    wg("set wg0 private-key /run/unclamped");
    assert_eq!(wg("show wg0 private-key"), format!("+{}", &private[1..]));

    // Allowed-IPs within allowed-IPs, and then the outermost alone.
    for (inside, outermost) in [
        ("10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16", "0.0.0.0/0"),
        ("1700::/111,5000::/4,e000::/37,9000::/75", "::/0"),
    ] {
        wg(&format!("set wg0 peer {} allowed-ips {outermost},{inside}", keys[1]));
        assert_eq!(wg("show wg0 allowed-ips").split_whitespace().count(), 6);
        wg(&format!("set wg0 peer {} allowed-ips {outermost}", keys[1]));
        assert_eq!(wg("show wg0 allowed-ips"), format!("{}\t{outermost}\n", keys[1]));
    }
    wg(&format!("set wg0 peer {} remove", keys[1]));

    // With the points of low order nobody has a secret: they may be peers, but nothing is ever sent to them.
    for point in LOW_ORDER {
        wg(&format!("set wg0 peer {point} persistent-keepalive 1 endpoint 127.0.0.1:1111"));
    }
    let nothing = node.host.space.inside(|| UdpSocket::bind("127.0.0.1:1111").unwrap()).unwrap();
    nothing.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    node.run("ip link set wg0 up").unwrap();
    let heard = uninterrupted(|| nothing.recv_from(&mut [0; 256]));
    assert!(heard.is_err(), "{heard:?}");
    process(node);
}

/// The points whose product with any scalar is zero (<https://cr.yp.to/ecdh.html#validate>).
const LOW_ORDER: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
];

//! Engines in link mode.

use super::*;

/// A machine in link mode.
fn on_link(network: &MemoryNetwork, number: u8) -> Machine {
    let mode = Mode::new(PeerLookup::Gateway, SourceCheck::Off).unwrap();
    Machine::with(network, number, mode, memory_tap())
}

/// A packet as a frame between two link addresses.
fn frame(from: &Machine, to: &Machine, packet: &[u8]) -> Vec<u8> {
    let [from, to] = [from, to].map(|machine| LinkAddress::of(machine.public_key()).to_bytes());
    [&to[..], &from, &[8, 0], packet].concat()
}

#[test]
fn a_frame_goes_to_the_peer_it_is_addressed_to_and_comes_from_its_sender_s_link_address() {
    let network = network();
    let (mut a, mut b, mut c) = (on_link(&network, 1), on_link(&network, 2), on_link(&network, 3));
    a.configure(at(0), &[&b, &c]);
    b.configure(at(0), &[&a]);
    c.configure(at(0), &[&a]);
    for machine in [&a, &b, &c] {
        machine.up();
    }
    settle(at(0), &mut [&mut a, &mut b, &mut c]);
    // Destinations in no peer's allowed-IPs and in those of another peer; between them, a multicast.
    let far = packet(Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(172, 16, 0, 1), b"via b");
    let to_c = packet(a.inner, c.inner, b"by way of b");
    let hello = packet(a.inner, Ipv4Addr::new(224, 0, 0, 5), b"hello");
    let multicast = [&[1, 0, 0x5e, 0, 0, 5][..], &frame(&a, &b, &hello)[6..]].concat();
    for frame in [frame(&a, &b, &far), multicast.clone(), frame(&a, &b, &to_c)] {
        a.stack.send(&frame);
    }
    settle(at(1), &mut [&mut a, &mut b, &mut c]);
    let received = |machine: &Machine| std::iter::from_fn(|| machine.stack.receive()).collect::<Vec<_>>();
    // The control thread sends multicasts, after what the worker has sent.
    assert_eq!(received(&b), [frame(&a, &b, &far), frame(&a, &b, &to_c), multicast.clone()]);
    assert_eq!(received(&c), [multicast]);
    assert!(received(&a).is_empty());
    assert_eq!(a.all_dropped(), 0);
}

#[test]
fn a_stream_to_an_unreachable_peer_rarely_signals_the_control_thread() {
    let network = network();
    let (mut a, b) = (on_link(&network, 1), on_link(&network, 2));
    a.configure(at(0), &[&b]);
    a.up();
    a.turn(at(0));
    let data = frame(&a, &b, &packet(a.inner, b.inner, b"hello?"));
    a.stack.send(&data);
    let mut second = 1;
    while a.dropped("peer-lost") == 0 {
        a.turn(at(second));
        a.stack.send(&data);
        second += 1;
        assert!(second < 10, "it leaves an initiation unanswered");
    }
    // Sends this many more, with a turn of the control thread after each. Returns how many signals it got.
    let stream = |a: &mut Machine, second, count| {
        let mut signals = 0;
        for _ in 0..count {
            a.stack.send(&data);
            a.carry(at(second), 0);
            while let Some(signal) = a.engine.workers.punted()[0].next_signal() {
                signals += 1;
                a.engine.device.handle_signal(at(second), signal);
            }
            a.control(at(second));
            while a.stack.receive().is_some() {}
        }
        signals
    };
    let signals = stream(&mut a, second, 1000);
    assert!(signals <= 2, "{signals}");
    // When the attempt has been given up, the next frame begins another one.
    for second in second..second + 100 {
        a.turn(at(second));
    }
    let initiations = || network.seen().iter().filter(|(_, _, datagram)| datagram[0] == 1).count();
    let before = initiations();
    let signals = stream(&mut a, second + 100, 1000);
    assert_eq!((signals, initiations() - before), (1, 1));
    // Without an endpoint there is nothing to try.
    let key = PrivateKey::from_bytes([77; 32]).public_key();
    assert_eq!(a.set(at(second), &format!("public_key={}", key.to_hex())), Reply::Done);
    let to = LinkAddress::of(key).to_bytes();
    a.stack.send(&[&to[..], &data[6..]].concat());
    a.carry(at(second), 0);
    assert_eq!(a.engine.workers.punted()[0].next_signal(), None);
}

#[test]
fn a_request_whose_link_address_is_refused_changes_nothing() {
    let network = network();
    let (mut a, b) = (on_link(&network, 1), on_link(&network, 2));
    let before = format!(
        "private_key={}\nlisten_port=7000\nfwmark=5\nsource_check=off\npublic_key={}",
        a.key.expose_hex().as_str(),
        b.public_key().to_hex()
    );
    let other_key = PrivateKey::from_bytes([9; 32]);
    let change = format!("private_key={}\nsource_check=firewall\n", other_key.expose_hex().as_str());
    let changes = ["", "listen_port=7001", "fwmark=6", "listen_port=7001\nfwmark=6", "listen_port=0"]
        .map(|port| format!("{change}{port}\nreplace_peers=true"));
    for up in [false, true] {
        if up {
            a.up();
            a.turn(at(0));
        }
        assert_eq!(a.set(at(0), &before), Reply::Done);
        let state = |a: &mut Machine| {
            let Reply::Lines(link) = a.request(at(0), "get_link=1") else { panic!("it has a link") };
            (a.get(at(0)), link, a.engine.udp().map(Udp::port))
        };
        let present = state(&mut a);
        assert_eq!(present.2, up.then_some(7000));
        a.stack.refuse_link_addresses(true);
        for change in &changes {
            assert_eq!(a.set(at(0), change), Reply::Refused(Errno(libc::EPERM)));
            assert_eq!(state(&mut a), present, "{change}");
            let free = a.network.bind(7001, 0);
            assert!(free.is_ok(), "no socket is left behind");
        }
        a.stack.refuse_link_addresses(false);
        assert_eq!(a.set(at(0), &changes[3]), Reply::Done);
        assert_eq!(a.engine.udp().map(Udp::port), up.then_some(7001));
    }
}

#[test]
fn two_peers_with_the_same_link_address_are_refused() {
    // Found by trying numbers in little endian: the link address ends with 08:53:19:43:ce for both keys.
    let [one, other] = [542_000_u32, 1_144_960].map(|number| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(key)
    });
    assert_eq!(LinkAddress::of(one), LinkAddress::of(other));
    let (one, other) = (one.to_hex(), other.to_hex());
    let mut machine = on_link(&network(), 1);
    let lines = format!("public_key={one}\npublic_key={other}");
    assert_eq!(machine.set(at(0), &lines), Reply::Refused(Errno::EEXIST));
    assert!(!machine.get(at(0)).contains("public_key"), "none of it is applied");
    assert_eq!(machine.set(at(0), &format!("public_key={one}")), Reply::Done);
    assert_eq!(machine.set(at(0), &format!("public_key={other}")), Reply::Refused(Errno::EEXIST));
    let exchange = format!("public_key={one}\nremove=true\npublic_key={other}");
    assert_eq!(machine.set(at(0), &exchange), Reply::Done);
    assert_eq!(machine.set(at(0), &format!("replace_peers=true\npublic_key={one}")), Reply::Done);
    // Without link mode it does not matter.
    let mut machine = Machine::on(&network(), 1);
    assert_eq!(machine.set(at(0), &lines), Reply::Done);
}

#[test]
fn the_network_stack_is_told_when_an_address_it_asked_for_moves_to_another_peer() {
    let network = network();
    let (mut a, b) = (on_link(&network, 1), on_link(&network, 2));
    a.configure(at(0), &[]);
    a.up();
    a.turn(at(0));
    let own = LinkAddress::of(a.public_key()).to_bytes();
    let question = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &own, &[10, 0, 0, 1], &[0; 6], &b.inner.octets()].concat();
    a.stack.send(&[&[0xff; 6][..], &own, &[8, 6], &question].concat());
    a.turn(at(1));
    let from = |frame: Option<Vec<u8>>| LinkAddress::from_bytes(*frame.unwrap()[6..].first_chunk().unwrap());
    assert_eq!(from(a.stack.receive()), LinkAddress::NOBODY);

    let (key, there) = (b.public_key().to_hex(), LinkAddress::of(b.public_key()));
    assert_eq!(a.set(at(2), &format!("public_key={key}\nendpoint={}", b.endpoint())), Reply::Done);
    assert_eq!(a.stack.receive(), None);
    assert_eq!(a.set(at(2), &format!("public_key={key}\nallowed_ip=10.0.0.0/24")), Reply::Done);
    assert_eq!(from(a.stack.receive()), there);
    assert_eq!(a.set(at(2), &format!("public_key={key}\npersistent_keepalive_interval=9")), Reply::Done);
    assert_eq!(a.stack.receive(), None, "nothing has changed");
    // Each way of removing the peer; taking over its key is the last of them.
    let taken = format!("private_key={}", b.key.expose_hex().as_str());
    for removed in [format!("public_key={key}\nremove=true"), "replace_peers=true".into()] {
        assert_eq!(a.set(at(3), &removed), Reply::Done);
        assert_eq!(from(a.stack.receive()), LinkAddress::NOBODY);
        assert_eq!(a.set(at(3), &format!("public_key={key}\nallowed_ip=10.0.0.2/32")), Reply::Done);
        assert_eq!(from(a.stack.receive()), there);
    }
    assert_eq!(a.set(at(4), &taken), Reply::Done);
    let Reply::Lines(lines) = a.request(at(4), "get_link=1") else { panic!("no lines") };
    assert_eq!(*lines, format!("peer_lookup=gateway\nsource_check=off\nlink_address={there}\n"));
}

#[test]
fn the_interface_s_link_address_is_derived_from_the_device_s_key() {
    let network = network();
    let (mut a, b) = (on_link(&network, 1), on_link(&network, 2));
    a.configure(at(0), &[&b]);
    let own = LinkAddress::of(a.public_key());
    assert_eq!(a.engine.tun().link_address(), Some(own));
    let key = b.public_key().to_hex();
    assert_eq!(a.set(at(0), &format!("public_key={key}\npath_mtu=1400")), Reply::Done);
    let Reply::Lines(lines) = a.request(at(0), "get_link=1") else { panic!("no lines") };
    let there = LinkAddress::of(b.public_key());
    let expected = format!(
        "peer_lookup=gateway\nsource_check=off\nlink_address={own}\npublic_key={key}\nlink_address={there}\n\
         reachable=true\npath_mtu=1400\n"
    );
    assert_eq!(*lines, expected);
}

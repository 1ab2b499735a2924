//! Requests of the control socket, and the port.

use super::*;

#[test]
fn a_port_that_the_system_chose_is_kept_until_it_is_set_anew() {
    let network = network();
    let mut a = Machine::on(&network, 1);
    let port = |a: &Machine| a.engine.udp().map(Udp::port);
    // The system would choose another one now than later.
    let other = a.network.bind(0, 0).expect("a free port");
    a.up();
    a.turn(at(0));
    drop(other);
    let chosen = port(&a).expect("it is open");
    let shown = format!("listen_port={chosen}\n");
    let down_and_up = |a: &mut Machine, squatter: Option<u16>| {
        a.down();
        a.turn(at(1));
        let shown = a.get(at(1));
        // Another program takes a port meanwhile.
        let _squatter = squatter.map(|port| a.network.bind(port, 0).expect("it is free"));
        a.up();
        a.turn(at(2));
        (shown, port(a))
    };
    assert_eq!(down_and_up(&mut a, None), (shown.clone(), Some(chosen)));
    // 0 asks for what is so already, while it is up and while it is down.
    assert_eq!(a.set(at(3), "listen_port=0"), Reply::Done);
    assert_eq!(down_and_up(&mut a, None), (shown.clone(), Some(chosen)));
    // It is no port that was asked for, so one that is taken is replaced.
    let (_, other) = down_and_up(&mut a, Some(chosen));
    assert!(other.is_some_and(|other| other != chosen));
    // One that was asked for, and then not any more.
    assert_eq!(a.set(at(4), "listen_port=7000"), Reply::Done);
    assert_eq!(down_and_up(&mut a, None), ("listen_port=7000\n".into(), Some(7000)));
    assert_eq!(a.set(at(5), "listen_port=0"), Reply::Done);
    assert!(port(&a).is_some_and(|port| port != 7000));
    a.down();
    a.turn(at(6));
    assert_eq!(a.set(at(6), "listen_port=7000"), Reply::Done);
    assert_eq!(a.set(at(6), "listen_port=0"), Reply::Done);
    assert_eq!(a.get(at(6)), "", "nothing is chosen yet");
}

#[test]
fn a_set_with_a_port_that_is_in_use_changes_nothing() {
    let (mut a, _b) = pair();
    let squatter = a.network.bind(999, 0).expect("free");
    let before = a.get(at(1));
    let other = PrivateKey::from_bytes([9; 32]);
    let lines =
        format!("private_key={}\nlisten_port=999\nfwmark=7\nreplace_peers=true", other.expose_hex().as_str());
    assert_eq!(a.set(at(1), &lines), Reply::Refused(Errno(libc::EADDRINUSE)));
    assert_eq!(a.get(at(1)), before);
    drop(squatter);
    assert_eq!(a.set(at(1), &lines), Reply::Done);
    assert!(a.get(at(1)).contains("listen_port=999\nfwmark=7\n"));
}

#[test]
fn a_port_that_is_in_use_is_reported_even_while_the_interface_is_down() {
    let mut a = Machine::on(&network(), 1);
    let squatter = a.network.bind(999, 0).expect("free");
    assert_eq!(a.set(at(0), "listen_port=999"), Reply::Refused(Errno(libc::EADDRINUSE)));
    drop(squatter);
    assert_eq!(a.set(at(0), "listen_port=999"), Reply::Done);
    assert!(a.network.bind(999, 0).is_ok(), "the port stays closed while the interface is down");
}

#[test]
fn opening_the_port_is_retried_if_it_was_in_use_when_the_interface_came_up() {
    let mut a = Machine::on(&network(), 1);
    assert_eq!(a.set(at(0), "listen_port=999"), Reply::Done);
    let squatter = a.network.bind(999, 0).expect("free");
    a.up();
    assert_eq!(a.turn(at(0)), NextTurn::Wait(Some(at(1).monotonic)));
    assert_eq!(
        a.set(at(0), "listen_port=999"),
        Reply::Refused(Errno(libc::EADDRINUSE)),
        "a client learns of it"
    );
    drop(squatter);
    a.turn(at(1));
    assert_eq!(a.engine.udp().map(Udp::port), Some(999));
}

#[test]
fn the_port_that_the_system_chose_is_reported() {
    let mut a = Machine::on(&network(), 1);
    assert_eq!(a.get(at(0)), "", "a device without configuration has nothing to report");
    a.up();
    a.turn(at(0));
    let port = a.engine.udp().expect("open").port();
    assert_ne!(port, 0);
    assert_eq!(a.get(at(0)), format!("listen_port={port}\n"));
    assert_eq!(a.set(at(0), "listen_port=0"), Reply::Done);
    assert_eq!(a.engine.udp().map(Udp::port), Some(port), "the port that was chosen is kept");
}

#[test]
fn get_reports_the_device_and_its_peers() {
    let (mut a, mut b) = pair();
    let psk = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";
    let preshared =
        |peer: &Machine| format!("public_key={}\npreshared_key={psk}", peer.public_key().to_hex());
    assert_eq!(a.set(at(1), &preshared(&b)), Reply::Done);
    assert_eq!(b.set(at(1), &preshared(&a)), Reply::Done);
    let keepalive = format!(
        "fwmark=10\npublic_key={}\npersistent_keepalive_interval=25\nallowed_ip=fd00::/64",
        b.public_key().to_hex()
    );
    assert_eq!(a.set(at(1), &keepalive), Reply::Done);
    settle(at(1), &mut [&mut a, &mut b]);
    let key = a.key.expose_hex();
    let peer = b.public_key().to_hex();
    // Sent: an initiation of 148 bytes and a keepalive of 32. Received: a response of 92.
    assert_eq!(
        a.get(at(1)),
        format!(
            "private_key={}\nlisten_port=51820\nfwmark=10\npublic_key={peer}\npreshared_key={psk}\n\
             protocol_version=1\nendpoint=192.0.2.2:51820\nlast_handshake_time_sec=1000001\n\
             last_handshake_time_nsec=0\ntx_bytes=180\nrx_bytes=92\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\n",
            key.as_str()
        )
    );
}

#[test]
fn a_set_adds_changes_and_removes_peers() {
    let network = network();
    let (mut a, b, c) = (Machine::on(&network, 1), Machine::on(&network, 2), Machine::on(&network, 3));
    a.configure(at(0), &[&b]);
    let (b, c) = (b.public_key().to_hex(), c.public_key().to_hex());
    let own = a.public_key().to_hex();
    let has = |machine: &mut Machine, line: &str| machine.get(at(0)).contains(&format!("{line}\n"));

    assert_eq!(
        a.set(at(0), &format!("public_key={c}\nupdate_only=true\nallowed_ip=10.0.0.3/32")),
        Reply::Done
    );
    assert!(!has(&mut a, &format!("public_key={c}")), "update_only adds no peer");

    assert_eq!(a.set(at(0), &format!("public_key={own}\nallowed_ip=10.0.0.1/32")), Reply::Done);
    assert!(!has(&mut a, &format!("public_key={own}")), "our own key is skipped");

    assert_eq!(a.set(at(0), &format!("public_key={c}\nallowed_ip=10.0.0.2/32")), Reply::Done);
    let state = a.get(at(0));
    let owner = state[..state.find("allowed_ip=").expect("a peer has it")].rfind("public_key=");
    assert!(
        state[owner.expect("a peer")..].starts_with(&format!("public_key={c}")),
        "it moved to the other peer: {state}"
    );

    assert_eq!(a.set(at(0), &format!("public_key={c}\nallowed_ip=-10.0.0.2/32")), Reply::Done);
    assert!(!has(&mut a, "allowed_ip=10.0.0.2/32"));

    let replaced = "replace_allowed_ips=true\nallowed_ip=10.8.0.0/16";
    assert_eq!(a.set(at(0), &format!("public_key={c}\nallowed_ip=10.7.0.0/16")), Reply::Done);
    assert_eq!(a.set(at(0), &format!("public_key={c}\n{replaced}")), Reply::Done);
    assert!(has(&mut a, "allowed_ip=10.8.0.0/16") && !has(&mut a, "allowed_ip=10.7.0.0/16"));

    assert_eq!(a.set(at(0), &format!("public_key={b}\nremove=true")), Reply::Done);
    assert!(!has(&mut a, &format!("public_key={b}")));

    assert_eq!(a.set(at(0), &format!("replace_peers=true\npublic_key={b}")), Reply::Done);
    assert!(has(&mut a, &format!("public_key={b}")) && !has(&mut a, &format!("public_key={c}")));
}

#[test]
fn a_keepalive_that_is_turned_on_and_off_again_before_a_turn_begins_a_handshake() {
    let (mut a, mut b) = pair();
    let keepalive =
        |seconds| format!("public_key={}\npersistent_keepalive_interval={seconds}", b.public_key().to_hex());
    for seconds in [1, 0] {
        assert_eq!(a.set(at(1), &keepalive(seconds)), Reply::Done);
    }
    settle(at(1), &mut [&mut a, &mut b]);
    assert!(!a.get(at(1)).contains("last_handshake_time_sec=0\n"), "{}", a.get(at(1)));
}

#[test]
fn what_has_arrived_at_a_port_is_delivered_before_the_port_changes() {
    const PACKETS: usize = 300;
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert!(b.stack.receive().is_some());
    for _ in 0..PACKETS {
        a.stack.send(&packet(a.inner, b.inner, &[0; 1000]));
    }
    settle(at(1), &mut [&mut a]);
    assert_eq!(b.set(at(1), "listen_port=999"), Reply::Done);
    assert_eq!(std::iter::from_fn(|| b.stack.receive()).count(), PACKETS);
}

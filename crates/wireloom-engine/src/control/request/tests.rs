//! Requests that are parsed, and those that are refused with a line and a fix.

use proptest::prelude::*;

use super::*;

const PRIVATE: &str = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";
const PEER: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const PRESHARED: &str = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";
const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The interfaces of the machine: one, called eth0.
fn scope(name: &str) -> Option<u32> {
    (name == "eth0").then_some(7)
}

fn parse(text: &str) -> Result<Option<Request>, RequestError> {
    let mut parser = Parser::default();
    let mut done = None;
    for line in text.lines() {
        assert!(done.is_none(), "a line follows the end: {line}");
        done = parser.line(line.as_bytes(), &scope)?;
    }
    Ok(done)
}

fn set(lines: &str) -> Set {
    match parse(&format!("set=1\n{lines}\n\n")) {
        Ok(Some(Request::Set(set))) => *set,
        other => panic!("{lines}: {other:?}"),
    }
}

/// The changes to the only peer of a set with these lines.
fn peer(lines: &str) -> PeerChange {
    let mut peers = set(&format!("public_key={PEER}\n{lines}")).peers;
    assert_eq!(peers.len(), 1);
    *peers.remove(0)
}

fn refused(lines: &str) -> (u64, String) {
    let error = parse(&format!("set=1\n{lines}\n\n")).expect_err(lines);
    (error.line, error.kind.to_string())
}

fn peer_key() -> PublicKey {
    PublicKey::from_hex(PEER).expect("a key")
}

#[test]
fn gets_are_parsed() {
    assert_eq!(parse("get=1\n\n"), Ok(Some(Request::Get)));
    assert_eq!(parse("get_drops=1\n\n"), Ok(Some(Request::GetDrops)));
    assert_eq!(parse("get_handover=1\n\n"), Ok(Some(Request::GetHandover)));
    assert_eq!(parse("get_paths=1\n\n"), Ok(Some(Request::GetPaths)));
    assert_eq!(parse("get_link=1\n\n"), Ok(Some(Request::GetLink)));
    assert_eq!(parse("get=1\n"), Ok(None), "not complete yet");
}

#[test]
fn an_empty_set_changes_nothing() {
    assert_eq!(parse("set=1\n\n"), Ok(Some(Request::Set(Box::default()))));
}

#[test]
fn all_device_keys_are_parsed() {
    let all = set(&format!(
        "private_key={PRIVATE}\nlisten_port=12912\nfwmark=4294967295\nreplace_peers=true\n\
         source_check=off"
    ));
    let expected = Set {
        private_key: Some(Some(PrivateKey::from_hex(PRIVATE).expect("a key"))),
        listen_port: Some(12_912),
        fwmark: Some(u32::MAX),
        source_check: Some(SourceCheck::Off),
        replace_peers: true,
        peers: Vec::new(),
    };
    assert_eq!(all, expected);
}

#[test]
fn a_key_of_zeroes_removes_the_key() {
    assert_eq!(set(&format!("private_key={ZERO}")).private_key, Some(None));
    assert_eq!(peer(&format!("preshared_key={ZERO}")).preshared_key, Some(None));
}

#[test]
fn a_private_key_that_is_zero_after_clamping_is_a_key() {
    // Clamping clears its only bits that are set, but as given it is not all zeroes.
    let almost = format!("07{}", &ZERO[2..]);
    assert!(matches!(set(&format!("private_key={almost}")).private_key, Some(Some(_))));
}

#[test]
fn all_peer_keys_are_parsed() {
    let peer = peer(&format!(
        "remove=true\nupdate_only=true\npreshared_key={PRESHARED}\nendpoint=192.0.2.1:51820\n\
         persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\
         path_mtu=1400\nprotocol_version=1"
    ));
    let expected = PeerChange {
        public_key: peer_key(),
        remove: true,
        update_only: true,
        preshared_key: Some(Some(PresharedKey::from_hex(PRESHARED).expect("a key"))),
        endpoint: Some("192.0.2.1:51820".parse().expect("an endpoint")),
        persistent_keepalive: Some(NonZeroU16::new(25)),
        path_mtu: Some(Some(1400)),
        replace_allowed_ips: true,
        allowed_ips: vec![AllowedIpChange::Add("10.0.0.0/8".parse().expect("a network"))],
    };
    assert_eq!(peer, expected);
}

#[test]
fn a_keepalive_of_zero_turns_keepalives_off() {
    assert_eq!(peer("persistent_keepalive_interval=0").persistent_keepalive, Some(None));
}

#[test]
fn a_path_mtu_of_zero_removes_it_and_small_ones_are_refused() {
    assert_eq!(peer("path_mtu=0").path_mtu, Some(None));
    assert_eq!(peer("path_mtu=552").path_mtu, Some(Some(552)));
    for value in ["551", "65536", "-1", "", "1400 "] {
        let (line, complaint) = refused(&format!("public_key={PEER}\npath_mtu={value}"));
        assert_eq!(line, 3);
        assert!(complaint.contains("552 to 65535"), "{complaint}");
    }
}

#[test]
fn source_checks_are_parsed() {
    assert_eq!(set("source_check=firewall").source_check, Some(SourceCheck::Firewall));
    assert_eq!(refused("source_check=on").1, "source_check takes allowed-ips, firewall or off");
}

#[test]
fn endpoints_are_parsed() {
    let endpoint = |text: &str| peer(&format!("endpoint={text}")).endpoint.expect("an endpoint");
    assert_eq!(endpoint("[2001:db8::1]:1"), "[2001:db8::1]:1".parse().expect("v6"));
    let by_name = endpoint("[fe80::1%eth0]:51820");
    assert_eq!(by_name, endpoint("[fe80::1%7]:51820"));
    assert_eq!(by_name, SocketAddrV6::new("fe80::1".parse().expect("v6"), 51_820, 0, 7).into());
}

#[test]
fn allowed_ips_are_parsed_in_order() {
    let networks = |text: &str| peer(text).allowed_ips;
    let network = |text: &str| text.parse::<IpNet>().expect("a network");
    assert_eq!(
        networks("allowed_ip=0.0.0.0/0\nallowed_ip=::/0\nallowed_ip=-10.1.0.0/16\nallowed_ip=-fd00::/8"),
        [
            AllowedIpChange::Add(network("0.0.0.0/0")),
            AllowedIpChange::Add(network("::/0")),
            AllowedIpChange::Remove(network("10.1.0.0/16")),
            AllowedIpChange::Remove(network("fd00::/8")),
        ]
    );
    assert_eq!(networks("allowed_ip=10.1.2.3/8"), [AllowedIpChange::Add(network("10.0.0.0/8"))]);
    assert_eq!(networks("allowed_ip=10.1.2.3"), [AllowedIpChange::Add(network("10.1.2.3/32"))]);
    assert_eq!(
        networks("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=11.0.0.0/8"),
        [AllowedIpChange::Add(network("11.0.0.0/8"))]
    );
}

#[test]
fn several_peers_are_parsed_in_order() {
    let set = set(&format!("public_key={PEER}\nremove=true\npublic_key={PRIVATE}\npublic_key={PEER}"));
    let removed: Vec<_> = set.peers.iter().map(|peer| (peer.public_key == peer_key(), peer.remove)).collect();
    assert_eq!(removed, [(true, true), (false, false), (true, false)]);
}

#[test]
fn a_parser_takes_several_requests() {
    let mut parser = Parser::default();
    let mut done = Vec::new();
    for line in ["get=1", "", "set=1", "listen_port=1", "", "get=1", ""] {
        done.extend(parser.line(line.as_bytes(), &scope).expect("well-formed"));
    }
    assert_eq!(done.len(), 3);
    assert!(!parser.is_unfinished());
}

#[test]
fn unknown_operations_are_refused() {
    for first in ["", "get", "get=2", "set=0", "GET / HTTP/1.1", "\u{1b}"] {
        let error = Parser::default().line(first.as_bytes(), &scope).expect_err(first);
        assert_eq!(error, RequestError { line: 1, kind: RequestErrorKind::UnknownOperation }, "{first}");
    }
}

#[test]
fn errors_name_the_line_and_the_valid_values() {
    let peer = format!("public_key={PEER}\n");
    let key_text = "64 hexadecimal digits";
    for (lines, line, message) in [
        ("private_key=zz", 2, format!("private_key takes {key_text}")),
        ("listen_port=65536", 2, "listen_port takes a UDP port: 0 to 65535".into()),
        ("listen_port=-1", 2, "listen_port takes a UDP port: 0 to 65535".into()),
        ("listen_port=1\nfwmark=0x10", 3, "fwmark takes a decimal number: 0 to 4294967295".into()),
        ("replace_peers=1", 2, "replace_peers takes true".into()),
        ("public_key=AA", 2, format!("public_key takes {key_text}")),
        ("no equals sign", 2, "a line is key=value".into()),
        (&format!("{peer}remove=false"), 3, "remove takes true".into()),
        (&format!("{peer}update_only="), 3, "update_only takes true".into()),
        (&format!("{peer}replace_allowed_ips=yes"), 3, "replace_allowed_ips takes true".into()),
        (&format!("{peer}preshared_key=0"), 3, format!("preshared_key takes {key_text}")),
        (
            &format!("{peer}persistent_keepalive_interval=off"),
            3,
            "persistent_keepalive_interval takes a number of seconds: 0 to 65535".into(),
        ),
        (&format!("{peer}protocol_version=2"), 3, "protocol_version takes 1".into()),
    ] {
        assert_eq!(refused(lines), (line, message), "{lines}");
    }
}

#[test]
fn bad_endpoints_are_refused() {
    for bad in [
        "example.org:51820",
        "192.0.2.1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "2001:db8::1:51820:",
        "[2001:db8::1]",
        "[fe80::1%nosuch]:1",
        "fe80::1%eth0:1",
        "[fe80::1%eth0]",
        "[1.2.3.4%eth0]:1",
        "",
    ] {
        let (line, message) = refused(&format!("public_key={PEER}\nendpoint={bad}"));
        assert_eq!(line, 3, "{bad}");
        assert!(message.starts_with("endpoint takes ADDRESS:PORT"), "{bad}: {message}");
    }
}

#[test]
fn bad_allowed_ips_are_refused() {
    for bad in ["10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "--10.0.0.0/8", "ten", "", "10.0.0.0/-1"] {
        let (line, message) = refused(&format!("public_key={PEER}\nallowed_ip={bad}"));
        assert_eq!(line, 3, "{bad}");
        assert!(message.starts_with("allowed_ip takes ADDRESS/PREFIX-LENGTH"), "{bad}: {message}");
    }
}

#[test]
fn unknown_and_misplaced_keys_are_refused() {
    let (line, message) = refused("allowed_ip=10.0.0.0/8");
    assert_eq!(line, 2);
    assert!(message.starts_with("unknown key \"allowed_ip\"; before the first public_key"), "{message}");
    let (line, message) = refused(&format!("public_key={PEER}\nlisten_port=1"));
    assert_eq!(line, 3);
    assert!(message.starts_with("unknown key \"listen_port\"; after a public_key"), "{message}");
}

#[test]
fn a_get_with_arguments_is_refused() {
    let error = parse("get=1\nset=1\n\n").expect_err("trailing line");
    assert_eq!(error, RequestError { line: 2, kind: RequestErrorKind::TrailingLine });
}

#[test]
fn long_lines_and_lines_that_are_not_utf_8_are_refused() {
    let mut parser = Parser::default();
    let _ = parser.line(b"set=1", &scope);
    let long = vec![b'a'; MAX_LINE + 1];
    let error = parser.line(&long, &scope).expect_err("too long");
    assert_eq!(error, RequestError { line: 2, kind: RequestErrorKind::LineTooLong });
    let _ = parser.line(b"set=1", &scope);
    let error = parser.line(b"private_key=\xff", &scope).expect_err("not text");
    assert_eq!(error, RequestError { line: 2, kind: RequestErrorKind::NotText });
}

#[test]
fn errors_never_show_values() {
    let almost = &PRIVATE[..63];
    for lines in [format!("private_key={almost}"), format!("public_key={PEER}\npreshared_key={almost}")] {
        let (_, message) = refused(&lines);
        assert!(!message.contains(&almost[..8]), "{message}");
    }
}

/// Lines that are almost right, to reach deep into the parser.
fn plausible_line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "get",
        "set",
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "remove",
        "update_only",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "replace_allowed_ips",
        "allowed_ip",
        "protocol_version",
        "",
    ]);
    let value = prop_oneof![
        Just("true".to_owned()),
        Just("1".to_owned()),
        Just(PEER.to_owned()),
        Just("[fe80::1%eth0]:1".to_owned()),
        Just("10.0.0.0/8".to_owned()),
        any::<u64>().prop_map(|number| number.to_string()),
        "[-\\[\\]0-9a-f:./%]{0,40}",
        ".{0,300}",
    ];
    (key, value).prop_map(|(key, value)| if key.is_empty() { value } else { format!("{key}={value}") })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let mut parser = Parser::default();
        for line in lines {
            let _ = parser.line(&line, &scope);
        }
    }

    #[test]
    fn plausible_lines_never_panic_and_an_error_ends_the_request(
        lines in prop::collection::vec(plausible_line(), 0..20),
    ) {
        let mut parser = Parser::default();
        for line in std::iter::once("set=1".to_owned()).chain(lines) {
            let outcome = parser.line(line.as_bytes(), &scope);
            prop_assert_eq!(parser.is_unfinished(), matches!(outcome, Ok(None)));
        }
    }
}

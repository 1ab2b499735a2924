//! Records, good and bad.

use proptest::{collection::btree_set, prelude::*};

use super::*;

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

#[test]
fn both_spellings_and_unknown_fields_are_read() {
    let snake = format!(
        r#"{{"public_key": "{KEY}", "endpoint": "vpn.example.org:51820", "endpoints": ["192.0.2.1:51820"],
        "addresses": ["192.0.2.1"], "workloads": ["10.1.1.0/24"], "link_addresses": ["10.9.0.1"],
        "tunnel_addresses": ["10.1.1.1"], "encrypt": false, "next_public_key": {{"newer": 1}}}}"#
    );
    let camel = format!(
        r#"{{"publicKey": "{KEY}", "endpoints": ["vpn.example.org:51820", "192.0.2.1:51820", "192.0.2.1:51820"],
        "addresses": ["192.0.2.1"], "workloads": ["10.1.1.0/24"], "linkAddresses": ["10.9.0.1"],
        "tunnelAddresses": ["10.1.1.1"], "encrypt": false, "kind": null}}"#
    );
    let node = read(&snake).unwrap();
    assert_eq!(node.endpoint_name.as_ref().unwrap().host(), "vpn.example.org");
    assert_eq!((node.endpoint, node.other_endpoints.len(), node.encrypt), (None, 1, false));
    assert_eq!(read(&camel).unwrap(), node);
    assert_eq!(read("{}").unwrap(), Node::default());
    assert_eq!(read(r#"{"workloads": null, "encrypt": null}"#).unwrap(), Node::default());
}

#[test]
fn what_is_written_has_the_spelling_of_the_store_and_no_empty_lists() {
    let node = Node { public_key: Some(KEY.parse().unwrap()), ..Node::default() };
    assert_eq!(write(&node, Spelling::Snake), format!(r#"{{"encrypt":true,"public_key":"{KEY}"}}"#));
    assert_eq!(write(&node, Spelling::Camel), format!(r#"{{"encrypt":true,"publicKey":"{KEY}"}}"#));
}

#[test]
fn each_mistake_names_the_field_and_the_fix() {
    let many = |field: &str, value: &str, len: usize| format!("{{\"{field}\": {:?}}}", vec![value; len]);
    let cases = [
        ("", "not a record: EOF while parsing a value at line 1 column 0; write a JSON object"),
        ("[]", "not a record: "),
        ("{\"encrypt\": \"no\"}", "not a record: invalid type: string \"no\", expected a boolean"),
        (r#"{"public_key": "x", "publicKey": "y"}"#, "not a record: duplicate field `public_key`"),
        (r#"{"public_key": "c2hvcnQ="}"#, "public_key: not a WireGuard key: "),
        (
            r#"{"endpoint": "127.0.0.1:22"}"#,
            "endpoints: \"127.0.0.1:22\" is not the endpoint of another machine",
        ),
        (r#"{"endpoint": "192.0.2.1"}"#, "endpoints: \"192.0.2.1\" is not an endpoint: it has no port"),
        (
            r#"{"endpoints": ["192.0.2.1:1", "a:1"]}"#,
            "endpoints: \"a:1\": only the first endpoint may be a name",
        ),
        (r#"{"addresses": ["::1"]}"#, "addresses: \"::1\" is every machine's own address; remove it"),
        (r#"{"addresses": ["10.0.0.0/8"]}"#, "addresses: \"10.0.0.0/8\" is not the address of a host"),
        (r#"{"workloads": ["0.0.0.0/0"]}"#, "workloads: \"0.0.0.0/0\" is too wide for workloads"),
        (r#"{"workloads": ["2001::/16"]}"#, "workloads: \"2001::/16\" is too wide for workloads"),
        (
            r#"{"endpoint": "[::ffff:127.0.0.1]:22"}"#,
            "endpoints: \"[::ffff:127.0.0.1]:22\" is not the endpoint of",
        ),
        (r#"{"endpoint": "255.255.255.255:22"}"#, "endpoints: \"255.255.255.255:22\" is not an endpoint: "),
        (r#"{"addresses": ["::ffff:127.0.0.1"]}"#, "addresses: \"::ffff:127.0.0.1\" is every machine's own"),
        (
            r#"{"workloads": ["127.0.0.0/8"]}"#,
            "workloads: \"127.0.0.0/8\" holds no addresses that workloads have",
        ),
        (
            r#"{"workloads": ["fe80::/64"]}"#,
            "workloads: \"fe80::/64\" holds no addresses that workloads have",
        ),
        (r#"{"workloads": ["224.0.0.0/24"]}"#, "workloads: \"224.0.0.0/24\" holds no addresses"),
        (r#"{"link_addresses": ["fe80::1"]}"#, "link_addresses: \"fe80::1\" is link-local; remove it"),
        (&many("workloads", "10.1.0.0/24", 1025), "workloads: 1025 entries; a record has at most 1024"),
        (&many("endpoints", "192.0.2.1:1", 9), "endpoints: 9 entries; a record has at most 8"),
        (&many("addresses", &"9".repeat(300), 1), "addresses: a value of 300 bytes; the longest has 259"),
        (
            &format!("{{\"x\": {:?}}}", "y".repeat(RECORD_MAX)),
            "the record has more than the 65536 bytes that a record has at most",
        ),
        (&"[".repeat(60_000), "not a record: "),
    ];
    for (text, expected) in cases {
        let what = read(text).unwrap_err();
        assert!(what.starts_with(expected), "{what}, not {expected}");
        assert!(what.len() < 1000, "{what}");
    }
}

#[test]
fn a_record_with_every_list_full_fits() {
    let long = |byte: u8| -> IpAddr { std::net::Ipv6Addr::from([0xfd | byte; 16]).into() };
    let address = |number: usize| match long(0xfd) {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) - number as u128).into()),
        IpAddr::V4(_) => unreachable!(),
    };
    let node = Node {
        public_key: Some(KEY.parse().unwrap()),
        other_endpoints: (0..ENDPOINTS_MAX).map(|number| (address(number), 65535).into()).collect(),
        addresses: (0..ADDRESSES_MAX).map(address).collect(),
        workloads: (0..WORKLOADS_MAX).map(|number| address(number).into()).collect(),
        link_addresses: (0..ADDRESSES_MAX).map(address).collect(),
        tunnel_addresses: (0..ADDRESSES_MAX).map(address).collect(),
        ..Node::default()
    };
    let text = write(&node, Spelling::Snake);
    assert!(text.len() < RECORD_MAX, "{}", text.len());
    assert_eq!(read(&text).unwrap().workloads.len(), WORKLOADS_MAX);
}

#[test]
fn names_are_those_of_hosts() {
    for name in ["n1", "node-1.example.org", "N_1", &"a".repeat(253)] {
        assert_eq!(check_name(name), Ok(()));
    }
    for name in ["", ".", "..", "a b", "a/b", "a\n", "bücher", &"a".repeat(254)] {
        assert!(check_name(name).is_err(), "{name}");
    }
}

#[test]
fn pools_are_read() {
    let read = |text: &str| read_pool("pods", text);
    assert_eq!(read(r#"{"cidr": "10.1.0.0/16", "newer": 1}"#), Ok("10.1.0.0/16".parse().unwrap()));
    assert!(read(r#"{"cidr": "10.1.0.1/16"}"#).unwrap_err().starts_with("cidr: "));
    assert!(read("{}").is_err());
    let cidr = |cidr: &str| read(&format!("{{\"cidr\": \"{cidr}\"}}"));
    for widest in ["10.0.0.0/8", "fc00::/7", "fd00::/8", "fd00::/16"] {
        assert_eq!(cidr(widest), Ok(widest.parse().unwrap()));
    }
    for wide in ["0.0.0.0/0", "10.0.0.0/7", "::/0", "fc00::/6"] {
        let what = cidr(wide).unwrap_err();
        assert!(what.contains("is too wide for a pool"), "{what}");
    }
    assert!(read_pool("", r#"{"cidr": "10.1.0.0/16"}"#).unwrap_err().starts_with("a pool has a name; "));
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0x0100_0001..0x7eff_ffff_u32).prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u64>().prop_map(|bits| IpAddr::V6(((0xfd61_u128 << 112) | u128::from(bits)).into())),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (ip(), 0..24_u8).prop_map(|(ip, longer)| {
        let shortest = if ip.is_ipv4() { 9 } else { 33 };
        IpNet::new(ip, shortest + longer).unwrap().trunc()
    })
}

fn node() -> impl Strategy<Value = Node> {
    let endpoints = proptest::collection::vec((ip(), 1..=u16::MAX).prop_map(SocketAddr::from), 0..4);
    let name = proptest::option::of("[a-z][a-z0-9]{0,8}\\.example:[1-9][0-9]{0,3}");
    let key = proptest::option::of(any::<[u8; 32]>());
    let lists = (btree_set(ip(), 0..4), btree_set(net(), 0..6), btree_set(ip(), 0..3), btree_set(ip(), 0..3));
    (key, endpoints, name, lists, any::<bool>()).prop_map(|(key, mut endpoints, name, lists, encrypt)| {
        let mut seen = BTreeSet::new();
        endpoints.retain(|endpoint| seen.insert(*endpoint));
        let endpoint_name = name.map(|name| name.parse().unwrap());
        let has_first = endpoint_name.is_none() && !endpoints.is_empty();
        Node {
            public_key: key.map(wireloom_types::PublicKey::from_bytes),
            endpoint: has_first.then(|| endpoints.remove(0)),
            other_endpoints: endpoints,
            endpoint_name,
            addresses: lists.0,
            workloads: lists.1,
            link_addresses: lists.2,
            tunnel_addresses: lists.3,
            encrypt,
        }
    })
}

/// JSON that is often nearly a record.
fn json() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        Just("public_key"),
        Just("publicKey"),
        Just("endpoint"),
        Just("endpoints"),
        Just("addresses"),
        Just("workloads"),
        Just("tunnelAddresses"),
        Just("encrypt"),
        Just("x"),
    ];
    let text = prop_oneof![
        ".{0,40}",
        "[0-9./:]{0,20}",
        Just("10.1.1.0/24".to_owned()),
        Just("192.0.2.1".to_owned()),
        Just("[fe80::1%3]:1".to_owned()),
    ];
    let value = prop_oneof![
        text.clone().prop_map(|text| serde_json::Value::from(text).to_string()),
        proptest::collection::vec(text, 0..4).prop_map(|list| serde_json::Value::from(list).to_string()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-1e999".to_owned()),
        Just("{\"a\": [".to_owned()),
    ];
    let fields = proptest::collection::vec((field, value), 0..6);
    fields.prop_map(|fields| {
        let fields: Vec<String> =
            fields.into_iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", fields.join(", "))
    })
}

proptest! {
    #[test]
    fn reading_what_was_written_is_the_identity(node in node()) {
        prop_assert_eq!(&read(&write(&node, Spelling::Snake)).unwrap(), &node);
        prop_assert_eq!(&read(&write(&node, Spelling::Camel)).unwrap(), &node);
    }

    #[test]
    fn no_input_panics_and_what_is_read_can_be_written(text in json()) {
        if let Ok(node) = read(&text) {
            prop_assert_eq!(&read(&write(&node, Spelling::Camel)).unwrap(), &node);
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = read(&text);
        let _ = read_pool("pods", &text);
        let _ = check_name(&text);
    }
}

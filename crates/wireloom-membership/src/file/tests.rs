//! The documented `mesh.toml`, and its mistakes.

use super::*;

const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

fn mesh(text: &str) -> Result<Cluster, Mistake> {
    parse(&TomlFile::from_text(Path::new("mesh.toml"), text))
}

#[test]
fn the_documented_file_becomes_a_cluster() {
    let text = format!(
        r#"
        preshared_key_file = "/etc/wireloom/mesh.psk"

        [[pools]]
        cidr = "10.161.0.0/16"
        [[pools]]
        cidr = "fd61::/48"

        [[nodes]]
        name = "node-a"
        public_key = "{KEY}"
        endpoint = "192.168.1.1:51820"
        addresses = ["192.168.1.1", "2001:db8::1"]
        workloads = ["10.161.1.0/24", "fd61:0:0:1::/64"]
        link_addresses = ["100.64.0.1"]
        tunnel_addresses = ["10.161.1.1", "fd61:0:0:1::1"]
        encrypt = true

        [[nodes]]
        name = "node-b"
        endpoint = "VPN.example.org:51820"
        encrypt = false
        workloads = ["10.161.2.0/24", "10.161.1.7/32"]
        "#
    );
    let a = Node {
        public_key: Some(KEY.parse().unwrap()),
        endpoint: Some("192.168.1.1:51820".parse().unwrap()),
        endpoint_name: None,
        other_endpoints: Vec::new(),
        addresses: ["192.168.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
        workloads: ["10.161.1.0/24".parse().unwrap(), "fd61:0:0:1::/64".parse().unwrap()].into(),
        link_addresses: ["100.64.0.1".parse().unwrap()].into(),
        tunnel_addresses: ["10.161.1.1".parse().unwrap(), "fd61:0:0:1::1".parse().unwrap()].into(),
        encrypt: true,
    };
    let b = Node {
        endpoint_name: Some("vpn.example.org:51820".parse().unwrap()),
        other_endpoints: Vec::new(),
        workloads: ["10.161.2.0/24".parse().unwrap(), "10.161.1.7/32".parse().unwrap()].into(),
        encrypt: false,
        ..Node::default()
    };
    let expected = Cluster {
        pools: ["10.161.0.0/16".parse().unwrap(), "fd61::/48".parse().unwrap()].into(),
        nodes: [("node-a".into(), a), ("node-b".into(), b)].into(),
        preshared_key_file: Some("/etc/wireloom/mesh.psk".into()),
    };
    assert_eq!(mesh(&text).unwrap(), expected);
}

#[test]
fn one_key_on_two_nodes_is_left_for_the_planner_to_report() {
    let text = format!(
        "[[nodes]]\nname = \"a\"\npublic_key = \"{KEY}\"\n[[nodes]]\nname = \"b\"\npublic_key = \"{KEY}\"\n"
    );
    assert_eq!(mesh(&text).unwrap().nodes.len(), 2);
}

#[test]
fn each_mistake_names_its_line_and_the_fix() {
    let cases = [
        ("", "mesh.toml: the file is empty; describe the mesh with [[nodes]] (and [[pools]])"),
        ("# all gone\n\n", "mesh.toml: the file is empty; describe the mesh with [[nodes]] (and [[pools]])"),
        ("[[pools]]\ncidr = \"10.0.0.0/8\"", "mesh.toml: there are no nodes; describe each with [[nodes]]"),
        (
            "[[nodes]]\nname = \"a\"\nkey = \"x\"",
            "mesh.toml:3: unknown field `key`, expected one of `name`, `public_key`, `endpoint`, `addresses`, \
             `workloads`, `link_addresses`, `tunnel_addresses`, `encrypt`; remove it or fix its spelling",
        ),
        (
            "[[pool]]\ncidr = \"10.0.0.0/8\"",
            "mesh.toml:1: unknown field `pool`, expected one of `preshared_key_file`, `pools`, `nodes`; remove it or \
             fix its spelling",
        ),
        (
            "[[nodes]]\nname = \"a\"\nlink_addresses = [\"fe80::1\"]",
            "mesh.toml:3: \"fe80::1\" is link-local; remove it: each peer's link-local address derives from its key",
        ),
        ("[[nodes]]\nworkloads = []", "mesh.toml:1: missing field `name`; add it to this table"),
        (
            "[[nodes]]\nname = \" \"",
            "mesh.toml:2: the node has no name; write the name that its agent uses (`node` in agent.toml, or the \
             host name)",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"10.161.1.0\"]",
            "mesh.toml:3: \"10.161.1.0\" is not a CIDR; write NETWORK/LENGTH, such as \"10.161.1.0/24\", and /32 or \
             /128 for a single address",
        ),
        (
            "[[pools]]\ncidr = \"10.161.0.1/16\"",
            "mesh.toml:2: \"10.161.0.1/16\" has host bits set; write \"10.161.0.0/16\", or \"10.161.0.1/32\"",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\n \"10.161.1.0/24\",\n \"fd61::1/64\",\n]",
            "mesh.toml:5: \"fd61::1/64\" has host bits set; write \"fd61::/64\", or \"fd61::1/128\"",
        ),
        (
            "[[nodes]]\nname = \"a\"\npublic_key = \"c2hvcnQ=\"",
            "mesh.toml:3: not a WireGuard key: expected 44 characters of base64, as `wg` prints them",
        ),
        (
            "[[nodes]]\nname = \"a\"\nendpoint = \"192.168.1.1\"",
            "mesh.toml:3: \"192.168.1.1\" is not an endpoint: it has no port from 1 to 65535; write ADDRESS:PORT or \
             NAME:PORT, such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"",
        ),
        (
            "[[nodes]]\nname = \"a\"\nendpoint = \"224.0.0.1:51820\"",
            "mesh.toml:3: \"224.0.0.1:51820\" is not an endpoint: nobody has that address; write ADDRESS:PORT or \
             NAME:PORT, such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"",
        ),
        (
            "[[nodes]]\nname = \"a\"\naddresses = [\"255.255.255.255\"]",
            "mesh.toml:3: \"255.255.255.255\" is not the address of a host; write one such as \"192.0.2.1\" or \
             \"2001:db8::1\", without a prefix length",
        ),
        (
            "[[nodes]]\nname = \"a\"\nendpoint = \"192.168.1.1:0\"",
            "mesh.toml:3: \"192.168.1.1:0\" is not an endpoint: it has no port from 1 to 65535; write ADDRESS:PORT or \
             NAME:PORT, such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"",
        ),
        (
            "[[nodes]]\nname = \"a\"\nendpoint = \"vpn_1.example.org:51820\"",
            "mesh.toml:3: \"vpn_1.example.org:51820\" is not an endpoint: a host name has letters, digits and dots, \
             and hyphens between them; write ADDRESS:PORT or NAME:PORT, such as \"192.0.2.1:51820\", \
             \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"",
        ),
        (
            "preshared_key_file = \"mesh.psk\"",
            "mesh.toml:1: \"mesh.psk\" is not an absolute path; write one such as \"/etc/wireloom/mesh.psk\", the \
             same on every node",
        ),
        (
            "[[nodes]]\nname = \"a\"\naddresses = [\"192.168.1.1/24\"]",
            "mesh.toml:3: \"192.168.1.1/24\" is not the address of a host; write one such as \"192.0.2.1\" or \
             \"2001:db8::1\", without a prefix length",
        ),
        (
            "[[nodes]]\nname = \"a\"\n[[nodes]]\nname = \"a\"",
            "mesh.toml:4: the name \"a\" is taken by the node at line 2; give each node a name of its own",
        ),
        (
            "[[nodes]]\nname = \"a\"\n[[pools]]\ncidr = \"10.0.0.0/8\"\n[[pools]]\ncidr = \"10.0.0.0/8\"",
            "mesh.toml:6: the pool 10.0.0.0/8 is already declared at line 4; remove one of the two",
        ),
        (
            "[[nodes]]\nname = \"a\"\naddresses = [\"192.0.2.1\"]\n\
             [[nodes]]\nname = \"b\"\naddresses = [\"192.0.2.1\"]",
            "mesh.toml:6: \"b\" claims the address 192.0.2.1, as \"a\" does at line 3; remove one of the two",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"10.1.0.0/24\"]\n\
             [[nodes]]\nname = \"b\"\nworkloads = [\"10.1.0.0/24\"]",
            "mesh.toml:6: \"b\" claims 10.1.0.0/24, which \"a\" claims at line 3; give each block to one node (only \
             a single address may lie inside another's block)",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"10.1.0.0/16\"]\n\
             [[nodes]]\nname = \"b\"\nworkloads = [\"10.1.3.0/24\"]",
            "mesh.toml:6: \"b\" claims 10.1.3.0/24, which lies inside 10.1.0.0/16 that \"a\" claims at line 3; give \
             each block to one node (only a single address may lie inside another's block)",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"fd61::/64\"]\n\
             [[nodes]]\nname = \"b\"\nworkloads = [\"fd61::/48\"]",
            "mesh.toml:6: \"b\" claims fd61::/48, which holds fd61::/64 that \"a\" claims at line 3; give each block \
             to one node (only a single address may lie inside another's block)",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"10.1.0.9/32\"]\n\
             [[nodes]]\nname = \"b\"\nworkloads = [\"10.1.0.9/32\"]",
            "mesh.toml:6: \"b\" claims 10.1.0.9/32, which \"a\" claims at line 3; give each block to one node (only \
             a single address may lie inside another's block)",
        ),
        (
            "[[nodes]]\nname = \"a\"\nworkloads = [\"10.1.0.0/24\"]\ntunnel_addresses = [\"10.1.1.1\"]",
            "mesh.toml:4: the tunnel address 10.1.1.1 lies in no workload CIDR of \"a\"; choose one of its workload \
             addresses that no workload has, or add 10.1.1.1/32 to its workloads",
        ),
        (
            "[[nodes]]\nname = \"a\"\nencrypt = \"no\"",
            "mesh.toml:3: invalid type: string \"no\", expected a boolean; write true or false, without quotes",
        ),
        (
            "[[nodes]\nname = \"a\"",
            "mesh.toml:1: unclosed array table, expected `]`; end the table's name with `]]`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(mesh(text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn a_borrowed_address_between_two_blocks_does_not_hide_their_overlap() {
    let text = "[[nodes]]\nname = \"a\"\nworkloads = [\"10.1.0.0/16\", \"10.1.2.3/32\"]\n\
                [[nodes]]\nname = \"b\"\nworkloads = [\"10.1.2.128/25\"]";
    assert!(mesh(text).unwrap_err().to_string().contains("lies inside 10.1.0.0/16"));
}

#[test]
fn an_absent_file_is_an_error() {
    let error = read(Path::new("/nonexistent/mesh.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /nonexistent/mesh.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn endpoints_that_are_hardly_meant_are_named_with_their_lines() {
    let endpoints = [
        "192.0.2.1:51820",
        "192.0.2.1:51821",
        "[::ffff:192.0.2.1]:51820",
        "127.0.0.2:51820",
        "[::1]:51820",
        "vpn.example.org:51820",
        "VPN.example.org:51820",
        "192.0.2.2:51820",
    ];
    let nodes = endpoints
        .iter()
        .enumerate()
        .map(|(number, endpoint)| format!("[[nodes]]\nname = \"n{number}\"\nendpoint = \"{endpoint}\"\n"));
    let file = TomlFile::from_text(Path::new("mesh.toml"), &nodes.collect::<String>());
    assert!(parse(&file).is_ok(), "they may be meant");
    let doubts: Vec<String> = doubts(&file).unwrap().iter().map(ToString::to_string).collect();
    let loopback = |line, endpoint, name| {
        format!(
            "mesh.toml:{line}: the endpoint {endpoint} of \"{name}\" is on every machine itself; write an address of \
             that node, unless a proxy listens there on each of the others"
        )
    };
    let shared = |line, name, endpoint, other, first| {
        format!(
            "mesh.toml:{line}: \"{name}\" has the endpoint {endpoint}, as \"{other}\" has at line {first}: one of the \
             two gets what is for the other; write where each of them listens"
        )
    };
    let expected = [
        shared(9, "n2", "192.0.2.1:51820", "n0", 3),
        loopback(12, "127.0.0.2:51820", "n3"),
        loopback(15, "[::1]:51820", "n4"),
        shared(21, "n6", "vpn.example.org:51820", "n5", 18),
    ];
    assert_eq!(doubts, expected);
}

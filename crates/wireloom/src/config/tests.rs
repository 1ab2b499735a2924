//! The documented `agent.toml`, its defaults and its mistakes.

use wireloom_plan::settings::{HostTransition, Scope, UnprovenPeers};
use wireloom_types::{PeerLookup, SourceCheck};

use super::*;

fn parse(text: &str) -> Result<Config, Mistake> {
    File::parse(&TomlFile::from_text(Path::new("agent.toml"), text)).map(|file| {
        let node = file.node.as_ref().map_or("host", |node| node.0.as_str()).to_owned();
        file.with_node(node)
    })
}

fn defaults() -> Config {
    Config {
        settings: Settings {
            node: "host".into(),
            interface: "wg0".into(),
            listen_port: 51820,
            mtu: None,
            persistent_keepalive: 0,
            encrypt_host_traffic: false,
            host_transition: None,
            encrypt_host_exempt: BTreeSet::new(),
            scope: Scope::Pool,
            rule_priority: 99,
            table: 1,
            fwmark: 0xa,
            unproven_peers: UnprovenPeers::Plaintext,
            guard: true,
            peer_lookup: PeerLookup::Destination,
            source_check: SourceCheck::AllowedIps,
        },
        private_key_file: "/var/lib/wireloom/wg0.key".into(),
        backend: BackendSetting::Auto,
        membership: Source::File("/etc/wireloom/mesh.toml".into()),
        declared: Declared::default(),
        table_is_auto: false,
        metrics: Listen::default(),
        warnings: BTreeSet::new(),
    }
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(parse("").unwrap(), defaults());
}

#[test]
fn the_debian_packages_example_has_the_defaults() {
    let example = include_str!("../../../../deploy/debian/agent.toml");
    let uncommented = |line: &str| {
        let setting = line.strip_prefix("# ").filter(|rest| rest.contains(" = "));
        setting.unwrap_or(line).replace("\"n1\"", "\"host\"") + "\n"
    };
    assert_eq!(parse(&example.lines().map(uncommented).collect::<String>()).unwrap(), defaults());
    assert_eq!(parse(example).unwrap(), defaults());
}

#[test]
fn the_documented_file_is_the_defaults_written_out() {
    let text = r#"
        node = "host"
        [wireguard]
        interface = "wg0"
        listen_port = 51820
        private_key_file = "/var/lib/wireloom/wg0.key"
        backend = "auto"
        mtu = 1420
        persistent_keepalive = 0
        [routing]
        encrypt_host_traffic = false
        encrypt_host_exempt = []
        scope = "pool"
        rule_priority = 99
        table = 1
        fwmark = "0xa"
        unproven_peers = "plaintext"
        guard = true
        [link]
        peer_lookup = "destination"
        source_check = "allowed-ips"
        [membership]
        source = "file"
        path = "/etc/wireloom/mesh.toml"
        [metrics]
        listen = ""
    "#;
    let mut expected = defaults();
    expected.settings.mtu = Some(1420);
    assert_eq!(parse(text).unwrap(), expected);
}

#[test]
fn every_other_value_is_read() {
    let text = r#"
        node = "n"
        [wireguard]
        backend = "userspace"
        persistent_keepalive = 25
        [routing]
        encrypt_host_traffic = true
        encrypt_host_exempt = ["192.168.1.1/32", "fd00::/64"]
        scope = "node"
        fwmark = 1
        unproven_peers = "reject"
        [metrics]
        listen = "127.0.0.1:9586"
    "#;
    let mut expected = defaults();
    expected.metrics = Listen(Some("127.0.0.1:9586".parse().unwrap()));
    expected.settings.node = "n".into();
    expected.backend = BackendSetting::Userspace;
    expected.settings.persistent_keepalive = 25;
    expected.settings.encrypt_host_traffic = true;
    expected.settings.encrypt_host_exempt =
        ["192.168.1.1/32", "fd00::/64"].map(|it| it.parse().unwrap()).into();
    expected.settings.scope = Scope::Node;
    expected.settings.fwmark = 1;
    expected.settings.unproven_peers = UnprovenPeers::Reject;
    assert_eq!(parse(text).unwrap(), expected);
}

#[test]
fn each_mistake_names_its_line_and_the_fix() {
    let cases = [
        (
            "\n[wireguard]\nport = 1",
            "agent.toml:3: unknown field `port`, expected one of `interface`, `listen_port`, `private_key_file`, \
             `backend`, `mtu`, `persistent_keepalive`; remove it or fix its spelling",
        ),
        (
            "[metrics]\nlisten = \"9586\"",
            "agent.toml:2: \"9586\" is no address and port; write one such as \"127.0.0.1:9586\" or \"[::1]:9586\", \
             or \"\" for no metrics",
        ),
        (
            "node = \"\"",
            "agent.toml:1: the node's name is empty; write a name, or remove the line to use the host name",
        ),
        (
            "[wireguard]\ninterface = \"a-very-long-interface\"",
            "agent.toml:2: \"a-very-long-interface\" is not an interface name; use 1 to 15 bytes without spaces, \
             \"/\", \":\" or \"%\", such as \"wg0\"",
        ),
        (
            "[wireguard]\n\nlisten_port = 0",
            "agent.toml:3: 0 is not a UDP port; use 1 to 65535, such as 51820",
        ),
        (
            "[wireguard]\nprivate_key_file = \"wg0.key\"",
            "agent.toml:2: \"wg0.key\" is a relative path; write an absolute one, which starts with /",
        ),
        (
            "[wireguard]\nbackend = \"quick\"",
            "agent.toml:2: \"quick\" is not a back end; write \"auto\", \"kernel\" or \"userspace\"",
        ),
        (
            "[link]\nsource_check = \"off\"\n[wireguard]\nbackend = \"kernel\"",
            "agent.toml:4: the kernel's WireGuard cannot do what [link] asks for; write backend = \"userspace\" (or \
             \"auto\", which then chooses it), or remove [link]",
        ),
        (
            "[wireguard]\nmtu = 1000",
            "agent.toml:2: an MTU of 1000 is out of range; use 1280 (IPv6's least) to 65535, or remove the line",
        ),
        (
            "[wireguard]\npersistent_keepalive = -1",
            "agent.toml:2: -1 seconds is not a keepalive interval; use 0 (off) to 65535",
        ),
        (
            "[routing]\nrule_priority = 32766",
            "agent.toml:2: a rule at priority 32766 is not between those of the tables local and main; use 1 to 32765",
        ),
        (
            "[routing]\ntable = 254",
            "agent.toml:2: table 254 is the kernel's own or out of range; use 1 to 252, or 256 to 4294967295",
        ),
        (
            "[routing]\ntable = \"1\"",
            "agent.toml:2: \"1\" is not a table; write \"auto\", or a number without quotes",
        ),
        (
            "[routing]\nfwmark = \"0x0\"",
            "agent.toml:2: a firewall mark is 1 to 0xffffffff, such as \"0xa\"; its bits must be Wireloom's own",
        ),
        (
            "[routing]\nfwmark = true",
            "agent.toml:2: this is not a firewall mark; write 1 to 0xffffffff, such as \"0xa\"",
        ),
        (
            "[routing]\nscope = \"all\"",
            "agent.toml:2: unknown variant `all`, expected `pool` or `node`; write one of these, in quotes",
        ),
        (
            "[link]\npeer_lookup = \"gateway\"\nsource_check = \"allowed-ips\"",
            "agent.toml:1: source_check = \"allowed-ips\" does not work with peer_lookup = \"gateway\", because a \
             gateway forwards packets whose sources are in nobody's allowed-IPs; remove source_check to use the \
             firewall, or write source_check = \"off\"",
        ),
        (
            "[link]\nsource_check = \"firewall\"",
            "agent.toml:1: source_check = \"firewall\" needs peer_lookup = \"gateway\", because the firewall \
             recognises a peer by its link address, which exists in link mode only; write peer_lookup = \"gateway\", \
             or remove source_check to use allowed-ips",
        ),
        (
            "[routing]\nunproven_peers = \"reject\"\nkeyless_peers = \"reject\"",
            "agent.toml:3: keyless_peers is the former name of unproven_peers, which is set too; remove keyless_peers",
        ),
        (
            "[routing]\nguard = false\nunproven_peers = \"reject\"",
            "agent.toml:3: the guard does what \"reject\" asks for, and guard = false turns it off; remove guard = \
             false, or write \"plaintext\"",
        ),
        (
            "[routing]\nguard = false\nkeyless_peers = \"reject\"",
            "agent.toml:3: the guard does what \"reject\" asks for, and guard = false turns it off; remove guard = \
             false, or write \"plaintext\"",
        ),
        (
            "[membership]\nsource = \"consul\"",
            "agent.toml:2: this version has no membership source \"consul\"; write \"file\", \"etcd\" or \
             \"kubernetes\"",
        ),
        (
            "[routing]\nencrypt_host_traffic = \"yes\"",
            "agent.toml:2: encrypt_host_traffic is true or false, or a step on the way from one to the other: \
             \"accept\" or \"prefer\"; write one of these",
        ),
        (
            "[routing]\nencrypt_host_exempt = [\"192.168.1.1\"]",
            "agent.toml:2: \"192.168.1.1\" is not a CIDR; write NETWORK/LENGTH, such as \"10.161.1.0/24\", and /32 or \
             /128 for a single address",
        ),
        (
            "[routing]\nencrypt_host_exempt = [\"192.168.1.1/24\"]",
            "agent.toml:2: \"192.168.1.1/24\" has host bits set; write \"192.168.1.0/24\", or \"192.168.1.1/32\"",
        ),
        (
            "[routing]\nguard = false\nencrypt_host_exempt = [\"fd00::1/128\"]",
            "agent.toml:3: the guard's table keeps what is exempt out of the tunnel, and guard = false turns it off; \
             remove guard = false, or encrypt_host_exempt",
        ),
        (
            "[routing]\nguard = false\nencrypt_host_traffic = \"prefer\"",
            "agent.toml:3: the guard's table tells on the way into host mode what is direct, and guard = false turns \
             it off; remove guard = false, or write true or false",
        ),
        (
            "\n[node]\nname = \"n1\"",
            "agent.toml:2: invalid type: map, expected a string; write text in quotes, such as node = \"NAME\", or a \
             table's name in one bracket, such as [routing]",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn host_mode_has_steps_on_the_way() {
    let mode = |value| {
        let config = parse(&format!("[routing]\nencrypt_host_traffic = {value}")).unwrap();
        (config.settings.encrypt_host_traffic, config.settings.host_transition)
    };
    assert_eq!(mode("\"accept\""), (true, Some(HostTransition::Accept)));
    assert_eq!(mode("\"prefer\""), (true, Some(HostTransition::Prefer)));
    assert_eq!(mode("true"), (true, None));
}

#[test]
fn the_former_name_of_a_setting_is_understood_with_a_warning() {
    let config = parse("[routing]\nkeyless_peers = \"reject\"").unwrap();
    assert_eq!(config.settings.unproven_peers, UnprovenPeers::Reject);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["agent.toml calls unproven_peers by its former name keyless_peers; rename it, with the same value"]
    );
    let config = parse("[routing]\nguard = false").unwrap();
    assert!(!config.settings.guard && config.warnings.is_empty());
}

#[test]
fn the_table_can_be_left_to_the_agent() {
    let config = parse("[routing]\ntable = \"auto\"").unwrap();
    assert!(config.table_is_auto);
    assert_eq!(config.settings.table, 15_700);
}

#[test]
fn only_the_default_file_may_be_absent() {
    let error = Config::load(Some(Path::new("/nonexistent/agent.toml")), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /nonexistent/agent.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn each_back_end_can_be_chosen() {
    let backend = |name: &str| parse(&format!("[wireguard]\nbackend = \"{name}\"")).unwrap().backend;
    assert_eq!(
        ["auto", "kernel", "userspace"].map(backend),
        [BackendSetting::Auto, BackendSetting::Kernel, BackendSetting::Userspace]
    );
}

#[test]
fn link_mode_checks_sources_in_the_firewall_unless_the_check_is_off() {
    let settings = |text: &str| parse(text).unwrap().settings;
    for text in [
        "[link]\npeer_lookup = \"gateway\"",
        "[link]\nsource_check = \"firewall\"\npeer_lookup = \"gateway\"",
    ] {
        let link = settings(text);
        assert_eq!((link.peer_lookup, link.source_check), (PeerLookup::Gateway, SourceCheck::Firewall));
    }
    let link = settings("[link]\npeer_lookup = \"gateway\"\nsource_check = \"off\"");
    assert_eq!((link.peer_lookup, link.source_check), (PeerLookup::Gateway, SourceCheck::Off));
    let open = settings("[link]\nsource_check = \"off\"");
    assert_eq!((open.peer_lookup, open.source_check), (PeerLookup::Destination, SourceCheck::Off));
}

mod membership {
    use wireloom_membership::{etcd, kubernetes};
    use wireloom_plan::own_record::Endpoint;

    use super::*;

    fn etcd() -> etcd::Settings {
        etcd::Settings {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            mesh: "default".into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
        }
    }

    #[test]
    fn etcd_is_asked_as_the_file_says() {
        let text = r#"
            [membership]
            source = "etcd"
            endpoints = ["http://127.0.0.1:2379"]
            workloads = []
        "#;
        let mut expected = defaults();
        expected.membership = Source::Etcd(Box::new(etcd()));
        expected.declared.workloads = Some(BTreeSet::new());
        assert_eq!(parse(text).unwrap(), expected);
        let text = r#"
            [membership]
            source = "etcd"
            endpoints = ["https://192.0.2.1:2379", "https://etcd.example.org"]
            mesh = "blue-1"
            ca_file = "/a"
            cert_file = "/b"
            key_file = "/c"
            username = "n1"
            password_file = "/d"
            workloads = ["10.161.1.0/24", "fd00:161:1::/64"]
            endpoint = "192.0.2.7:51820"
            addresses = ["192.0.2.7"]
            tunnel_addresses = ["10.161.1.1"]
            link_addresses = ["100.64.0.1"]
        "#;
        expected.membership = Source::Etcd(Box::new(etcd::Settings {
            endpoints: vec!["https://192.0.2.1:2379".into(), "https://etcd.example.org".into()],
            mesh: "blue-1".into(),
            ca_file: Some("/a".into()),
            cert_file: Some("/b".into()),
            key_file: Some("/c".into()),
            username: Some("n1".into()),
            password_file: Some("/d".into()),
        }));
        expected.declared = Declared {
            workloads: Some(["10.161.1.0/24", "fd00:161:1::/64"].map(|it| it.parse().unwrap()).into()),
            endpoint: Some(Endpoint::Address("192.0.2.7:51820".parse().unwrap())),
            addresses: Some(["192.0.2.7".parse().unwrap()].into()),
            tunnel_addresses: Some(["10.161.1.1".parse().unwrap()].into()),
            link_addresses: ["100.64.0.1".parse().unwrap()].into(),
        };
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn a_password_is_sent_in_plaintext_to_this_machine_only() {
        let is_taken = |endpoint: &str| {
            let text = format!(
                "[membership]\nsource = \"etcd\"\nendpoints = [\"{endpoint}\"]\nworkloads = []\nusername = \"u\"\n\
                 password_file = \"/p\""
            );
            parse(&text).is_ok()
        };
        for local in ["http://localhost:2379", "http://127.0.0.1", "http://[::1]:2379", "https://192.0.2.1"] {
            assert!(is_taken(local), "{local}");
        }
        for remote in
            ["http://localhost.example.org:2379", "http://127.0.0.1.example.org", "http://[2001:db8::1]:2379"]
        {
            assert!(!is_taken(remote), "{remote}");
        }
    }

    #[test]
    fn records_that_cross_the_network_in_plaintext_are_warned_of() {
        let warnings = |endpoints: &str| {
            let text = format!("[membership]\nsource = \"etcd\"\nendpoints = [{endpoints}]\nworkloads = []");
            let warnings = parse(&text).unwrap().warnings;
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let private = "\"http://localhost:2379\", \"http://[::1]\", \"https://192.0.2.1:2379\"";
        assert_eq!(warnings(private), Vec::<String>::new());
        assert_eq!(
            warnings(&format!("{private}, \"http://192.0.2.2:2379\", \"http://192.0.2.3:2379\"")),
            [
                "the records cross the network to http://192.0.2.2:2379 in plaintext: whoever is on the way can read \
                 and change them, and so decides what this node encrypts and for whom; write https://"
            ]
        );
    }

    #[test]
    fn kubernetes_needs_no_further_line() {
        let mut expected = defaults();
        let mut settings = kubernetes::Settings {
            kubeconfig: None,
            workloads: kubernetes::Workloads::Auto,
            pools: BTreeSet::new(),
            felix_peers: false,
        };
        expected.membership = Source::Kubernetes(Box::new(settings.clone()));
        assert_eq!(parse("[membership]\nsource = \"kubernetes\"").unwrap(), expected);
        let text = r#"
            [membership]
            source = "kubernetes"
            workloads = "auto"
            endpoint = "auto"
            addresses = "auto"
            pools = []
            felix_peers = false
        "#;
        assert_eq!(parse(text).unwrap(), expected, "the defaults written out");
        let text = r#"
            [membership]
            source = "kubernetes"
            kubeconfig = "/etc/kubeconfig"
            workloads = "calico"
            pools = ["10.161.0.0/16"]
            felix_peers = true
            endpoint = "n1.example.org:51820"
        "#;
        settings.kubeconfig = Some("/etc/kubeconfig".into());
        settings.workloads = kubernetes::Workloads::Calico;
        settings.pools = ["10.161.0.0/16".parse().unwrap()].into();
        settings.felix_peers = true;
        expected.membership = Source::Kubernetes(Box::new(settings));
        expected.declared.endpoint = Some(Endpoint::Name("n1.example.org:51820".parse().unwrap()));
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn each_mistake_names_its_line_and_the_fix() {
        const ETCD: &str = "source = \"etcd\"\nendpoints = [\"http://192.0.2.1:2379\"]\n";
        let cases = [
            (
                "path = \"/mesh.toml\"\nsource = \"kubernetes\"".to_owned(),
                "agent.toml:2: path is for source = \"file\", and the source is \"kubernetes\"; remove path, or write \
                 source = \"file\"",
            ),
            (
                "workloads = []".to_owned(),
                "agent.toml:2: workloads is for source = \"etcd\" or \"kubernetes\", and the source is \"file\"; \
                 remove \
                 workloads, or write source = \"etcd\" or \"kubernetes\"",
            ),
            (
                "source = \"etcd\"".to_owned(),
                "agent.toml:2: source = \"etcd\" needs to know where etcd is; write endpoints = \
                 [\"https://ADDRESS:2379\"]",
            ),
            (
                ETCD.to_owned(),
                "agent.toml:2: etcd knows nobody's workloads; write the CIDRs of this node's, such as workloads = \
                 [\"10.161.1.0/24\"], or [] if it has none",
            ),
            (
                format!("{ETCD}workloads = \"auto\""),
                "agent.toml:4: etcd knows nobody's workloads; write the CIDRs of this node's, such as workloads = \
                 [\"10.161.1.0/24\"], or [] if it has none",
            ),
            (
                format!("{ETCD}workloads = []\nusername = \"u\""),
                "agent.toml:5: username needs password_file; write both, or neither",
            ),
            (
                format!("{ETCD}workloads = []\nkey_file = \"/k\""),
                "agent.toml:5: key_file needs cert_file; write both, or neither",
            ),
            (
                format!("{ETCD}workloads = []\nusername = \"u\"\npassword_file = \"/p\""),
                "agent.toml:6: the password would cross the network in plaintext, because an endpoint is http://; \
                 write \
                 https://, or remove username and password_file",
            ),
            (
                "endpoints = [\"192.0.2.1:2379\"]".to_owned(),
                "agent.toml:2: \"192.0.2.1:2379\" is not the URL of an etcd server; write one such as \
                 \"https://192.0.2.1:2379\"",
            ),
            (
                "mesh = \"a/b\"".to_owned(),
                "agent.toml:2: \"a/b\" is not the name of a mesh; use 1 to 63 letters, digits, hyphens, dots and \
                 underscores",
            ),
            (
                "workloads = \"cilium\"".to_owned(),
                "agent.toml:2: \"cilium\" is no place that workloads come from; write \"auto\", \"pod-cidrs\", \
                 \"calico\", or their CIDRs in brackets, such as [\"10.161.1.0/24\"]",
            ),
            (
                "workloads = [\"10.161.1.1/24\"]".to_owned(),
                "agent.toml:2: \"10.161.1.1/24\" has host bits set; write \"10.161.1.0/24\", or \"10.161.1.1/32\"",
            ),
            (
                "endpoint = \"192.0.2.1:0\"".to_owned(),
                "agent.toml:2: \"192.0.2.1:0\" is not an endpoint: it has no port from 1 to 65535; write ADDRESS:PORT \
                 or NAME:PORT, such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \
                 \"vpn.example.org:51820\", or \"auto\"",
            ),
            (
                "addresses = [\"0.0.0.0\"]".to_owned(),
                "agent.toml:2: \"0.0.0.0\" is not the address of a host; write one such as \"192.0.2.1\" or \
                 \"2001:db8::1\", without a prefix length",
            ),
            (
                "addresses = \"192.0.2.1\"".to_owned(),
                "agent.toml:2: \"192.0.2.1\" is not a list; write \"auto\", or addresses in brackets, such as \
                 [\"192.0.2.1\"]",
            ),
            (
                "link_addresses = [\"fe80::1\"]".to_owned(),
                "agent.toml:2: \"fe80::1\" is link-local; remove it: each peer's link-local address derives from its \
                 key",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(&format!("[membership]\n{text}")).unwrap_err().to_string(), expected, "{text}");
        }
    }
}

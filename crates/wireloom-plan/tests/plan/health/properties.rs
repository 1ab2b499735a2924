//! Whatever is observed: judging never panics, and says no more than what is so.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection, option, prelude::*, sample};
use wireloom_plan::{
    health::{
        Action, AgentFacts, DeviceFacts, DroppingChain, Encryption, EndpointRoute, Facts, Forwarding, Hook,
        Machine, MarkUser, PeerFacts, PolicyRule, Sample, Trends, Verdict, examine,
    },
    planner::Planner,
    proofs::{Account, Because},
    routing::{Family, Rule},
};
use wireloom_types::PublicKey;

use super::MAIN;
use crate::{
    universe::{NODES, OWN, any_key, cluster, key_file, observed, prefix, rule, settings},
    world::{ip, proven},
};

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (1000..1400_u64).prop_map(Duration::from_secs),
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

fn accounts() -> impl Strategy<Value = BTreeMap<String, Account>> {
    let because = sample::select(vec![
        Because::NoKey,
        Because::OwnKey,
        Because::SharedKey { with: vec!["c".into()] },
        Because::ItDoesNotEncrypt,
        Because::WeDoNotEncrypt,
        Because::OurKeyUnknown,
        Because::NoEndpoint,
        Because::NotReady,
        Because::NoForwarding { family: Family::V6 },
        Because::NoAnswer,
    ]);
    let account = prop_oneof![
        (time(), option::of(time())).prop_map(|(since, ends)| Account::Proven { since, ends }),
        (time(), because).prop_map(|(since, because)| Account::Unproven { since, because }),
    ];
    collection::btree_map(sample::select(NODES.as_slice()).prop_map(str::to_owned), account, 0..5)
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..3000_u64, 1 => Just(u64::MAX)]
}

fn peers() -> impl Strategy<Value = BTreeMap<PublicKey, PeerFacts>> {
    let peer = (option::of(time()), count(), count(), sample::select(vec![0_u16, 3, u16::MAX])).prop_map(
        |(last_handshake, received, sent, persistent_keepalive)| PeerFacts {
            endpoint: Some("192.168.1.2:51820".parse().unwrap()),
            last_handshake,
            received,
            sent,
            persistent_keepalive,
        },
    );
    collection::btree_map(any_key(), peer, 0..6)
}

fn drops() -> impl Strategy<Value = BTreeMap<String, u64>> {
    let reason = sample::select(vec!["source-not-allowed", "unknown-peer", "bad-mac1", "stale-timestamp"]);
    collection::btree_map(reason.prop_map(str::to_owned), count(), 0..4)
}

fn trends() -> impl Strategy<Value = Trends> {
    collection::vec((time(), peers(), option::of(drops())), 0..4).prop_map(|samples| {
        let mut trends = Trends::default();
        for (now, peers, drops) in &samples {
            trends.sample(*now, &Sample { peers, drops: drops.as_ref() });
        }
        trends
    })
}

fn machine() -> impl Strategy<Value = Machine> {
    let action = sample::select(vec![
        Action::Lookup,
        Action::Goto(98),
        Action::Goto(200),
        Action::Nop,
        Action::Blackhole,
    ]);
    let rule =
        (rule(), action).prop_map(|(rule, action)| PolicyRule { rule: Rule { table: MAIN, ..rule }, action });
    let rules = collection::vec(rule, 0..5);
    let chain = sample::select(vec![Hook::Input, Hook::Forward]).prop_map(|hook| DroppingChain {
        family: "ip".into(),
        table: "filter".into(),
        chain: "X".into(),
        hook,
    });
    let user = sample::select(vec![MarkUser::KubeProxy, MarkUser::Calico, MarkUser::Cilium]);
    let address = sample::select(vec!["192.168.1.2", "192.168.1.3", "fd00::2"]).prop_map(ip);
    let way = (sample::select(vec!["wg0", "eth0"]), sample::select(vec![0_u32, 1280, 1500]))
        .prop_map(|(interface, mtu)| EndpointRoute { interface: interface.into(), mtu });
    let others = (collection::btree_set(chain, 0..2), collection::btree_set(user, 0..3));
    let ways = collection::btree_map(address, option::of(way), 0..3);
    let main = option::of(collection::btree_set(prefix(), 0..8));
    (rules, others, ways, main, any::<[bool; 3]>()).prop_map(
        |(rules, (droppers, mark_users), endpoint_routes, main, [v4, v6, networkd])| Machine {
            forwarding: Forwarding { v4, v6 },
            rules,
            tables: main.into_iter().map(|main| (MAIN, main)).collect(),
            droppers,
            mark_users,
            networkd,
            endpoint_routes,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_is_so(
        (mut kernel, programmed, machine) in (observed(), any::<bool>(), machine()),
        (cluster, settings, own) in (option::weighted(0.9, cluster()), settings(), key_file()),
        (accounts, trends) in (accounts(), option::of(trends())),
        (peers, drops, silent) in (peers(), option::of(drops()), option::weighted(0.2, option::of(0..99_u64))),
        (running, last_pass, now) in (any::<bool>(), option::of(time()), time()),
    ) {
        let mut planner = cluster.clone().map(|cluster| Planner::new(settings.clone(), own, cluster));
        if let (Some(planner), Some(cluster)) = (&mut planner, &cluster) {
            let standings = accounts.iter().filter_map(|(name, account)| {
                let key = cluster.nodes.get(name)?.public_key?;
                matches!(account, Account::Proven { .. }).then(|| (name.clone(), proven(key)))
            });
            planner.set_standings(standings.collect());
        }
        let mut plan = planner.as_mut().and_then(|planner| planner.plan(&kernel).ok());
        if let (true, Some(made)) = (programmed, &plan) {
            kernel.apply_all(&made.ops).unwrap();
            plan = planner.as_mut().and_then(|planner| planner.plan(&kernel).ok());
        }
        let health = examine(&Facts {
            cluster: cluster.as_ref(),
            settings: &settings,
            accounts: &accounts,
            observed: &kernel,
            plan: plan.as_ref(),
            device: match silent {
                None => DeviceFacts::Answers { peers: &peers, drops: drops.as_ref() },
                Some(Some(for_seconds)) => DeviceFacts::Silent { for_seconds },
                Some(None) => DeviceFacts::Absent,
            },
            refused: &BTreeMap::new(),
            trends: trends.as_ref(),
            machine: &machine,
            agent: AgentFacts { running, last_pass, trouble: None },
            now,
        });

        let nodes = cluster.iter().flat_map(|cluster| cluster.nodes.keys()).filter(|name| *name != OWN);
        let nodes: BTreeSet<&String> = nodes.collect();
        let listed: Vec<&String> = health.peers.iter().map(|peer| &peer.name).take(nodes.len()).collect();
        prop_assert_eq!(listed, nodes.into_iter().collect::<Vec<_>>(), "every other node, by name");
        prop_assert_eq!(health.verdict == Verdict::Encrypted, health.verdict.reasons().is_empty());
        prop_assert!(silent.is_none() || matches!(health.verdict, Verdict::NotEncrypted(_)));
        let firewall = kernel.firewall.as_ref();
        let guards = firewall.is_some_and(|firewall| !firewall.altered && firewall.guard.is_some());
        for peer in &health.peers {
            let is_proven = matches!(accounts.get(&peer.name), Some(Account::Proven { .. }));
            let in_plaintext = matches!(peer.encrypted, Encryption::Plaintext { .. });
            prop_assert!(!(guards && is_proven && in_plaintext), "the guard refuses that: {:?}", peer);
            prop_assert!(is_proven || peer.encrypted != Encryption::Encrypted, "without a proof: {:?}", peer);
        }
        let worst_first = health.findings.is_sorted_by_key(|finding| Reverse(finding.severity()));
        prop_assert!(worst_first);
        for finding in &health.findings {
            prop_assert!(finding.to_string().len() > 40, "{}", finding);
        }
        serde_json::to_string(&health).unwrap();
    }
}

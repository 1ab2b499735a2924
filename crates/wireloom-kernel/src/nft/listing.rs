//! Parses the output of `nft --json list table` (libnftables-json(5)).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};
use wireloom_plan::firewall::{Firewall, Guard, IncomingMark};

use super::{
    chain::Chain,
    contents::Contents,
    elements,
    errors::{ERRORS_REFUSED, GUARD_ERRORS},
    expression::{Rule, unquoted},
    guard::{
        FORGED, GUARD_ANSWERS, GUARD_FORWARD, GUARD_INGRESS, GUARD_LEAVING, RETURNED, UNPROVEN_IN,
        UNPROVEN_OUT,
    },
    rules::{JUDGE_SOURCES, MARK_INCOMING, STRANGERS},
    segments::SEGMENTS_IN,
    set::Set,
    table::Table,
};

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// The kinds of objects that we write. Any other kind makes the listing unreadable, and so the table altered.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Object {
    Metainfo(IgnoredAny),
    Table(Value),
    Chain(Value),
    Rule(Value),
    Set(ListedSet),
    Counter(ListedCounter),
}

#[derive(Deserialize)]
struct ListedSet {
    name: String,
    #[serde(default)]
    elem: Vec<Value>,
    /// Its type, flags and other properties.
    #[serde(flatten)]
    properties: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct ListedCounter {
    #[serde(default)]
    name: String,
    packets: u64,
}

/// The contents of an existing table. A table that holds anything but what we write is altered.
pub(super) fn parse(json: &[u8], interface: &str) -> Table {
    let listing = serde_json::from_slice::<Listing>(json).ok();
    listing.and_then(|listing| Objects::sort(listing).read(interface)).unwrap_or_else(|| Table {
        firewall: Some(Firewall { altered: true, ..Firewall::default() }),
        ..Table::default()
    })
}

/// The objects of a listing, by kind.
#[derive(Default)]
struct Objects {
    /// Whether the table has flags: it may be dormant.
    flagged: bool,
    chains: Vec<Value>,
    rules: Vec<Value>,
    sets: Vec<ListedSet>,
    counters: BTreeMap<String, u64>,
}

impl Objects {
    fn sort(listing: Listing) -> Self {
        let mut objects = Self::default();
        for object in listing.nftables {
            match object {
                Object::Metainfo(IgnoredAny) => {}
                Object::Table(table) => objects.flagged |= table.get("flags").is_some(),
                Object::Chain(chain) => objects.chains.push(chain),
                Object::Rule(rule) => objects.rules.push(rule),
                Object::Set(set) => objects.sets.push(set),
                Object::Counter(counter) => {
                    objects.counters.insert(counter.name, counter.packets);
                }
            }
        }
        objects
    }

    /// `None` unless the table holds exactly what [`super::script`] writes.
    fn read(self, interface: &str) -> Option<Table> {
        let firewall = Firewall {
            mark_incoming: self.mark_incoming(),
            judge_sources: self.has_chain(&JUDGE_SOURCES),
            guard: self.guard(),
            segment_v6: self.segment_v6(),
            altered: false,
        };
        if self.flagged || !self.holds(&Contents::of(&firewall, interface)) {
            return None;
        }
        let mut table = Table::default();
        for set in &self.sets {
            elements::read(&set.name, &set.elem, &mut table)?;
        }
        let counter = |name| self.counters.get(name).copied().unwrap_or_default();
        table.judged_peers = table.refusals.peers.keys().copied().collect();
        table.refusals.strangers = counter(STRANGERS);
        let counters = &mut table.guard_counters;
        counters.unproven_out = counter(UNPROVEN_OUT);
        counters.unproven_in = counter(UNPROVEN_IN);
        counters.returned = counter(RETURNED);
        counters.forged = counter(FORGED);
        counters.errors = counter(ERRORS_REFUSED);
        table.firewall = Some(firewall);
        Some(table)
    }

    fn mark_incoming(&self) -> Option<IncomingMark> {
        let expressions = self.rules_of(&MARK_INCOMING).next()?;
        incoming_mark(expressions, "/0/match/right", "/1/mangle/value/|/1")
    }

    fn segment_v6(&self) -> Option<u16> {
        let rule = self.rules_of(&SEGMENTS_IN).next()?;
        last(rule)?.pointer("/mangle/value")?.as_u64()?.try_into().ok()
    }

    fn guard(&self) -> Option<Guard> {
        if !self.has_chain(&GUARD_FORWARD) {
            return None;
        }
        let by_port = |rule: &&Value| rule.pointer("/0/match/left/payload/field") == Some(&json!("sport"));
        let datagrams = self.rules_of(&GUARD_LEAVING).find(by_port);
        let datagrams = datagrams.and_then(|rule| incoming_mark(rule, "/0/match/right", "/1/match/right"));
        let answer = self.rules_of(&GUARD_ANSWERS).next().and_then(last);
        let answer = answer.and_then(|last| last.pointer("/mangle/value/|/1")?.as_u64()?.try_into().ok());
        let forged = |rule: &&Value| {
            rule.as_array().is_some_and(|all| all.iter().any(|each| each["counter"] == FORGED))
        };
        let outward = self.rules_of(&GUARD_INGRESS).find(forged);
        let error_sources =
            self.rules_of(&GUARD_ERRORS).filter_map(|rule| last(rule)?.pointer("/mangle/value")?.as_str());
        let error_sources: BTreeSet<&str> = error_sources.collect();
        Some(Guard {
            mark: datagrams.as_ref().map(|datagrams| datagrams.mark).or(answer)?,
            datagrams,
            reject: self.counters.contains_key(UNPROVEN_OUT),
            outward: outward.map(interfaces).unwrap_or_default(),
            error_source_v4: error_sources.iter().find_map(|source| source.parse().ok()),
            error_source_v6: error_sources.iter().find_map(|source| source.parse().ok()),
        })
    }

    /// Whether these chains, sets and counters are there as written, and no others.
    fn holds(&self, contents: &Contents) -> bool {
        let Contents { chains, sets, counters } = contents;
        chains.len() == self.chains.len()
            && chains.iter().all(|(chain, rules)| self.is_as_written(chain, rules))
            && chains.iter().map(|(_, rules)| rules.len()).sum::<usize>() == self.rules.len()
            && sets.len() == self.sets.len()
            && sets.iter().all(|set| self.sets.iter().any(|found| found.is(set)))
            && counters.len() == self.counters.len()
            && counters.iter().all(|counter| self.counters.contains_key(*counter))
    }

    fn is_as_written(&self, chain: &Chain, rules: &[Rule]) -> bool {
        let placed = self
            .chain(chain)
            .is_some_and(|found| chain.listed().iter().all(|(key, value)| found.get(key) == Some(value)));
        placed && self.rules_of(chain).map(normal).eq(rules.iter().map(|rule| normal(&rule.listed)))
    }

    fn has_chain(&self, chain: &Chain) -> bool {
        self.chain(chain).is_some()
    }

    fn chain(&self, chain: &Chain) -> Option<&Value> {
        self.chains.iter().find(|found| found["name"] == chain.name)
    }

    /// The expressions of the chain's rules.
    fn rules_of(&self, chain: &Chain) -> impl Iterator<Item = &Value> {
        self.rules.iter().filter(|rule| rule["chain"] == chain.name).map(|rule| &rule["expr"])
    }
}

impl ListedSet {
    fn is(&self, set: &Set) -> bool {
        let listed = set.listed();
        let mut properties = listed.iter().map(|(key, value)| {
            let found = self.properties.get(*key).unwrap_or(&Value::Null);
            normal_property(key, found) == normal_property(key, value)
        });
        self.name == set.name && properties.all(|same| same)
    }
}

fn incoming_mark(expressions: &Value, port: &str, mark: &str) -> Option<IncomingMark> {
    Some(IncomingMark {
        port: expressions.pointer(port)?.as_u64()?.try_into().ok()?,
        mark: expressions.pointer(mark)?.as_u64()?.try_into().ok()?,
    })
}

fn last(expressions: &Value) -> Option<&Value> {
    expressions.as_array()?.last()
}

/// The interfaces that a rule matches first: one, or several in an anonymous set.
fn interfaces(rule: &Value) -> BTreeSet<String> {
    match rule.pointer("/0/match/right") {
        Some(Value::String(only)) => [unquoted(only)].into(),
        Some(several) => {
            let members = several["set"].as_array().into_iter().flatten();
            members.filter_map(|member| Some(member.as_str()?.to_owned())).collect()
        }
        None => BTreeSet::new(),
    }
}

/// What nft lists in one way or another: sorts the members of anonymous sets, whose order depends on the kernel, and
/// takes a single flag out of its list, as nft does from 1.1 on.
fn normal(listed: &Value) -> Value {
    match listed {
        Value::Array(all) => all.iter().map(normal).collect(),
        Value::Object(all) => {
            all.iter().map(|(key, value)| (key.clone(), normal_property(key, value))).collect()
        }
        other => other.clone(),
    }
}

fn normal_property(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("flags", Value::Array(flags)) if flags.len() == 1 => flags[0].clone(),
        ("set", Value::Array(members)) => {
            let mut members = members.clone();
            members.sort_by_key(ToString::to_string);
            members.into()
        }
        (_, value) => normal(value),
    }
}

#[cfg(test)]
mod tests {
    use wireloom_plan::{address_range::AddressRange, firewall::GuardSet};
    use wireloom_types::LinkAddress;

    use super::{
        super::{
            counters::Refusals,
            guard::GUARD_FORWARD,
            guard_sets,
            rules::{REFUSED, SOURCES_V4},
        },
        *,
    };

    fn guard() -> Guard {
        Guard {
            datagrams: None,
            mark: 0xa,
            reject: true,
            outward: ["eth0".into(), "eth1".into()].into(),
            error_source_v4: Some([10, 161, 1, 1].into()),
            error_source_v6: None,
        }
    }

    fn firewall() -> Firewall {
        Firewall {
            mark_incoming: Some(IncomingMark { port: 51820, mark: 0xa }),
            judge_sources: true,
            guard: Some(guard()),
            segment_v6: Some(1140),
            altered: false,
        }
    }

    /// A table as nft 1.0.6 lists it, with elements in some sets.
    fn listed(firewall: &Firewall) -> Value {
        let object = |name: &str| json!({ "family": "inet", "table": "wireloom", "name": name, "handle": 1 });
        let with = |mut object: Value, properties: &[(&'static str, Value)]| {
            for (key, value) in properties.iter().filter(|(_, value)| !value.is_null()) {
                object[*key] = value.clone();
            }
            object
        };
        let contents = Contents::of(firewall, "wg0");
        let mut objects = vec![
            json!({ "metainfo": { "version": "1.0.6", "json_schema_version": 1 } }),
            json!({ "table": { "family": "inet", "name": "wireloom", "handle": 1 } }),
        ];
        objects.extend(contents.counters.iter().map(|counter| {
            json!({ "counter": with(object(counter), &[("packets", json!(3)), ("bytes", json!(9))]) })
        }));
        objects.extend(contents.sets.iter().map(|set| {
            let elements = ("elem", elements(set.name));
            json!({ "set": with(with(object(set.name), &set.listed()), &[elements]) })
        }));
        objects.extend(
            contents
                .chains
                .iter()
                .map(|(chain, _)| json!({ "chain": with(object(chain.name), &chain.listed()) })),
        );
        for (chain, rules) in &contents.chains {
            objects.extend(rules.iter().map(|rule| {
                json!({ "rule": { "family": "inet", "table": "wireloom", "chain": chain.name, "handle": 2,
                                  "expr": rule.listed } })
            }));
        }
        json!({ "nftables": objects })
    }

    fn elements(set: &str) -> Value {
        let counter = |packets| json!({ "packets": packets, "bytes": 100 * packets });
        match set {
            "sources4" => json!([
                { "concat": ["02:00:00:00:00:01", { "prefix": { "addr": "10.0.0.0", "len": 24 } }] },
                { "concat": ["02:00:00:00:00:01", { "range": ["10.0.1.0", "10.0.1.6"] }] },
                { "concat": ["02:00:00:00:00:02", "10.0.0.5"] },
            ]),
            "refused" => json!([{ "elem": { "val": "02:00:00:00:00:01", "counter": counter(7) } }]),
            "own4" => json!(["10.161.1.7"]),
            "pools6" => json!([{ "prefix": { "addr": "fd61::", "len": 48 } }]),
            "refused_out4" => json!([
                { "elem": { "val": { "prefix": { "addr": "10.161.2.0", "len": 24 } }, "counter": counter(5) } },
                { "elem": { "val": { "range": ["10.161.3.1", "10.161.3.6"] }, "counter": counter(0) } },
            ]),
            "refused_in6" => json!([{ "elem": { "val": "fd61::7", "counter": counter(2) } }]),
            _ => Value::Null,
        }
    }

    fn read(listed: &Value) -> Table {
        parse(listed.to_string().as_bytes(), "wg0")
    }

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_table_is_read_back_as_written() {
        let table = read(&listed(&firewall()));
        assert_eq!(table.firewall, Some(firewall()));
        let [one, other] = [1, 2].map(|number| LinkAddress::from_bytes([2, 0, 0, 0, 0, number]));
        assert_eq!(table.refusals, Refusals { peers: [(one, 7)].into(), strangers: 3 });
        assert_eq!(table.judged_peers, [one].into());
        let shown: Vec<String> = table.sources.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                format!("{one} . 10.0.0.0/24"),
                format!("{one} . 10.0.1.0-10.0.1.6"),
                format!("{other} . 10.0.0.5"),
            ]
        );
        let guarded: Vec<_> = table.guarded.iter().map(|it| (it.set, it.addresses.to_string())).collect();
        assert_eq!(
            guarded,
            [
                (GuardSet::Own, "10.161.1.7".into()),
                (GuardSet::Pools, "fd61::/48".into()),
                (GuardSet::RefusedOut, "10.161.2.0/24".into()),
                (GuardSet::RefusedOut, "10.161.3.1-10.161.3.6".into()),
                (GuardSet::RefusedIn, "fd61::7".into()),
            ]
        );
        let counters = table.guard_counters;
        let [to, also_to] = [range("10.161.2.0", "10.161.2.255"), range("10.161.3.1", "10.161.3.6")];
        assert_eq!(counters.outgoing, [(to, 5), (also_to, 0)].into());
        assert_eq!(counters.incoming, [(range("fd61::7", "fd61::7"), 2)].into());
        assert_eq!((counters.unproven_out, counters.unproven_in, counters.errors), (3, 3, 3));
    }

    #[test]
    fn every_kind_of_guard_is_read_back_as_written() {
        let guards = [
            guard(),
            Guard { reject: false, ..guard() },
            Guard { outward: BTreeSet::new(), ..guard() },
            Guard { outward: ["eth*".into()].into(), ..guard() },
            Guard { outward: ["eth*".into(), "eth0".into()].into(), ..guard() },
            Guard { error_source_v4: None, ..guard() },
            Guard { error_source_v6: Some("fd61::1".parse().unwrap()), ..guard() },
            Guard { datagrams: Some(IncomingMark { port: 51820, mark: 0xa }), ..guard() },
        ];
        for guard in guards {
            let firewall = Firewall { guard: Some(guard), ..Firewall::default() };
            assert_eq!(read(&listed(&firewall)).firewall, Some(firewall));
        }
    }

    #[test]
    fn an_empty_table_is_not_absent() {
        let empty = json!({ "nftables": [{ "table": { "name": "wireloom" } }] });
        assert_eq!(read(&empty), Table { firewall: Some(Firewall::default()), ..Table::default() });
    }

    #[test]
    fn any_foreign_change_makes_the_table_altered() {
        type Alter = fn(&mut Vec<Value>);
        fn named<'a>(all: &'a mut [Value], kind: &str, name: &str) -> &'a mut Value {
            all.iter_mut().filter_map(|it| it.get_mut(kind)).find(|it| it["name"] == name).unwrap()
        }
        fn remove(all: &mut Vec<Value>, kind: &str, name: &str) {
            let before = all.len();
            all.retain(|it| it.get(kind).is_none_or(|it| it["name"] != name));
            assert_eq!(all.len(), before - 1);
        }
        let alterations: [(&str, Alter); 17] = [
            ("a rule twice", |all| all.push(all.last().unwrap().clone())),
            ("a rule missing", |all| drop(all.pop())),
            ("another verdict", |all| {
                let rule =
                    all.iter_mut().rfind(|it| it.pointer("/rule/chain") == Some(&json!(JUDGE_SOURCES.name)));
                rule.unwrap()["rule"]["expr"][1] = json!({ "accept": null });
            }),
            ("a rule in a chain of no one", |all| {
                all.push(json!({ "rule": { "chain": "stranger", "expr": [] } }));
            }),
            ("another chain", |all| all.push(json!({ "chain": { "name": "stranger" } }))),
            ("another hook", |all| named(all, "chain", JUDGE_SOURCES.name)["hook"] = json!("input")),
            ("another policy", |all| named(all, "chain", GUARD_FORWARD.name)["policy"] = json!("drop")),
            ("a hook where there is none", |all| {
                named(all, "chain", GUARD_FORWARD.name)["hook"] = json!("output");
            }),
            ("another set", |all| all.push(json!({ "set": { "name": "stranger", "type": "ether_addr" } }))),
            ("a set missing", |all| remove(all, "set", REFUSED.name)),
            ("a set of the guard missing", |all| {
                remove(all, "set", guard_sets::set(GuardSet::Nodes, guard_sets::FAMILIES[0]).name);
            }),
            ("a set of another type", |all| named(all, "set", SOURCES_V4.name)["flags"] = json!([])),
            ("an element that expires", |all| {
                let elements = &mut named(all, "set", SOURCES_V4.name)["elem"];
                elements[0] = json!({ "elem": { "val": elements[0], "timeout": 60 } });
            }),
            ("an element that does not count", |all| {
                named(all, "set", "refused_out4")["elem"][0] = json!("10.161.2.7");
            }),
            ("another counter", |all| named(all, "counter", STRANGERS)["name"] = json!("stranger")),
            ("a map", |all| all.push(json!({ "map": { "name": "stranger" } }))),
            ("a dormant table", |all| all[1]["table"]["flags"] = json!("dormant")),
        ];
        for (what, alter) in alterations {
            let mut listed = listed(&firewall());
            alter(listed["nftables"].as_array_mut().unwrap());
            assert!(read(&listed).firewall.unwrap().altered, "{what}");
        }
        assert!(parse(b"{", "wg0").firewall.unwrap().altered);
        let listed = listed(&firewall()).to_string();
        assert!(parse(listed.as_bytes(), "wg1").firewall.unwrap().altered, "another interface");
    }

    #[test]
    fn a_single_flag_is_listed_with_or_without_a_list() {
        let mut listed = listed(&firewall());
        for set in listed["nftables"].as_array_mut().unwrap().iter_mut().filter_map(|it| it.get_mut("set")) {
            if set.get("flags").is_some() {
                set["flags"] = json!("interval");
            }
        }
        assert_eq!(read(&listed).firewall, Some(firewall()));
    }

    #[test]
    fn the_members_of_an_anonymous_set_may_have_any_order() {
        let mut listed = listed(&firewall());
        for rule in listed["nftables"].as_array_mut().unwrap() {
            for expression in
                rule.pointer_mut("/rule/expr").and_then(Value::as_array_mut).into_iter().flatten()
            {
                if let Some(Value::Array(members)) = expression.pointer_mut("/match/right/set") {
                    members.reverse();
                }
            }
        }
        assert_eq!(read(&listed).firewall, Some(firewall()));
    }
}

//! Parses the output of `nft --json list table` (libnftables-json(5)).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use wireloom_plan::firewall::{Firewall, Guard, IncomingMark};

use super::{
    chain::Chain,
    contents::Contents,
    elements,
    errors::{ERRORS_REFUSED, GUARD_ERRORS},
    expression::{Rule, unquoted},
    guard::{
        FORGED, GUARD_ANSWERS, GUARD_EGRESS, GUARD_INGRESS, GUARD_OUTPUT, RETURNED, UNPROVEN_IN, UNPROVEN_OUT,
    },
    rules::{JUDGE_SOURCES, MARK_INCOMING, STRANGERS},
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

    fn guard(&self) -> Option<Guard> {
        if !self.has_chain(&GUARD_EGRESS) {
            return None;
        }
        let first = self.rules_of(&GUARD_OUTPUT).next();
        let datagrams = first.and_then(|rule| incoming_mark(rule, "/0/match/right", "/1/match/right"));
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
        let placed = self.chain(chain).is_some_and(|found| {
            chain.listed().iter().all(|(key, value)| found.get(key).unwrap_or(&Value::Null) == value)
        });
        placed && self.rules_of(chain).map(in_order).eq(rules.iter().map(|rule| in_order(&rule.listed)))
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
        let mut properties =
            listed.iter().map(|(key, value)| self.properties.get(*key).unwrap_or(&Value::Null) == value);
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

/// Sorts the members of a rule's anonymous sets, whose order depends on the kernel.
fn in_order(expressions: &Value) -> Value {
    let mut expressions = expressions.clone();
    for expression in expressions.as_array_mut().into_iter().flatten() {
        if let Some(Value::Array(members)) = expression.pointer_mut("/match/right/set") {
            members.sort_by_key(ToString::to_string);
        }
    }
    expressions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(chain: &Chain) -> Value {
        let mut listed = json!({ "family": "inet", "table": "wireloom", "name": chain.name, "handle": 1 });
        for (key, value) in chain.listed() {
            listed[key] = value;
        }
        json!({ "chain": listed })
    }

    fn rules(chain: &Chain, rules: Vec<Rule>) -> Vec<Value> {
        let rule = |rule: Rule| {
            json!({ "rule": { "family": "inet", "table": "wireloom", "chain": chain.name, "handle": 2,
                              "expr": rule.listed } })
        };
        rules.into_iter().map(rule).collect()
    }

    /// A table with everything in it, as nft 1.0.6 lists it.
    fn listed() -> Value {
        let set =
            |name, kind: Value| json!({ "family": "inet", "name": name, "table": "wireloom", "type": kind });
        let mut sources4 = set(SOURCES_V4, json!(["ether_addr", "ipv4_addr"]));
        sources4["flags"] = json!(["interval"]);
        sources4["elem"] = json!([
            { "concat": ["02:00:00:00:00:01", { "prefix": { "addr": "10.0.0.0", "len": 24 } }] },
            { "concat": ["02:00:00:00:00:01", { "range": ["10.0.1.0", "10.0.1.6"] }] },
            { "concat": ["02:00:00:00:00:02", "10.0.0.5"] },
        ]);
        let mut sources6 = set(SOURCES_V6, json!(["ether_addr", "ipv6_addr"]));
        sources6["flags"] = json!(["interval"]);
        let mut refused = set(REFUSED, json!("ether_addr"));
        refused["stmt"] = json!([{ "counter": null }]);
        refused["elem"] = json!([
            { "elem": { "val": "02:00:00:00:00:01", "counter": { "packets": 7, "bytes": 700 } } },
        ]);
        let mut objects = vec![
            json!({ "metainfo": { "version": "1.0.6", "json_schema_version": 1 } }),
            json!({ "table": { "family": "inet", "name": "wireloom", "handle": 1 } }),
            json!({ "counter": { "family": "inet", "name": STRANGERS, "table": "wireloom",
                "packets": 3, "bytes": 9 } }),
            json!({ "set": sources4 }),
            json!({ "set": sources6 }),
            json!({ "set": refused }),
            chain(&MARK_INCOMING),
            chain(&JUDGE_SOURCES),
        ];
        objects.extend(rules(&MARK_INCOMING, vec![mark_incoming(&IncomingMark { port: 51820, mark: 0xa })]));
        objects.extend(rules(&JUDGE_SOURCES, judge_sources("wg0")));
        json!({ "nftables": objects })
    }

    fn read(listed: &Value) -> Table {
        parse(listed.to_string().as_bytes(), "wg0")
    }

    #[test]
    fn a_table_is_read_back_as_written() {
        let table = read(&listed());
        let mark_incoming = Some(IncomingMark { port: 51820, mark: 0xa });
        assert_eq!(table.firewall, Some(Firewall { mark_incoming, judge_sources: true, altered: false }));
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
    }

    #[test]
    fn an_empty_table_is_not_absent() {
        let empty = json!({ "nftables": [{ "table": { "name": "wireloom" } }] });
        assert_eq!(read(&empty), Table { firewall: Some(Firewall::default()), ..Table::default() });
    }

    #[test]
    fn any_foreign_change_makes_the_table_altered() {
        type Alter = fn(&mut Vec<Value>);
        let alterations: [(&str, Alter); 11] = [
            ("a rule twice", |all| all.push(all.last().unwrap().clone())),
            ("a rule missing", |all| drop(all.pop())),
            ("another verdict", |all| all.last_mut().unwrap()["rule"]["expr"][1] = json!({ "accept": null })),
            ("another chain", |all| all.push(json!({ "chain": { "name": "stranger" } }))),
            ("another hook", |all| all[7]["chain"]["hook"] = json!("input")),
            ("another set", |all| all.push(json!({ "set": { "name": "stranger", "type": "ether_addr" } }))),
            ("a set missing", |all| drop(all.remove(4))),
            ("a set of another type", |all| all[4]["set"]["flags"] = json!([])),
            ("an element that expires", |all| {
                all[3]["set"]["elem"][0] =
                    json!({ "elem": { "val": all[3]["set"]["elem"][0], "timeout": 60 } });
            }),
            ("another counter", |all| all[2]["counter"]["name"] = json!("stranger")),
            ("a map", |all| all.push(json!({ "map": { "name": "stranger" } }))),
        ];
        for (what, alter) in alterations {
            let mut listed = listed();
            alter(listed["nftables"].as_array_mut().unwrap());
            assert!(read(&listed).firewall.unwrap().altered, "{what}");
        }
        assert!(parse(b"{", "wg0").firewall.unwrap().altered);
        assert!(parse(listed().to_string().as_bytes(), "wg1").firewall.unwrap().altered, "another interface");
    }

    #[test]
    fn the_members_of_an_anonymous_set_may_have_any_order() {
        let mut listed = listed();
        let rules = listed["nftables"].as_array_mut().unwrap();
        let set = rules.iter_mut().find_map(|rule| rule.pointer_mut("/rule/expr/0/match/right/set"));
        set.unwrap().as_array_mut().unwrap().reverse();
        assert!(!read(&listed).firewall.unwrap().altered);
    }
}

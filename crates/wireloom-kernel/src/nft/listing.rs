//! Parses the output of `nft --json list table` (libnftables-json(5)).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};
use wireloom_plan::{
    address_range::AddressRange,
    firewall::{Firewall, IncomingMark, Source},
};
use wireloom_types::LinkAddress;

use super::{
    Table,
    rules::{
        Chain, JUDGE_SOURCES, MARK_INCOMING, REFUSED, Rule, SOURCES_V4, SOURCES_V6, STRANGERS, judge_sources,
        mark_incoming,
    },
};

/// Counters of packets that the firewall refused because of their source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// By peer; every peer is listed.
    pub peers: BTreeMap<LinkAddress, u64>,
    /// Packets of senders that are not peers.
    pub strangers: u64,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// The kinds of objects that we write. Any other kind makes the listing unreadable, and so the table altered.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Object {
    Metainfo(IgnoredAny),
    Table(IgnoredAny),
    Chain(Value),
    Rule(Value),
    Set(Set),
    Counter(Counter),
}

#[derive(Deserialize)]
struct Set {
    name: String,
    #[serde(default)]
    elem: Vec<Value>,
    /// Its type, flags and other properties.
    #[serde(flatten)]
    kind: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Counter {
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
    chains: Vec<Value>,
    rules: Vec<Value>,
    sets: Vec<Set>,
    counters: Vec<Counter>,
}

impl Objects {
    fn sort(listing: Listing) -> Self {
        let mut objects = Self::default();
        for object in listing.nftables {
            match object {
                Object::Metainfo(IgnoredAny) | Object::Table(IgnoredAny) => {}
                Object::Chain(chain) => objects.chains.push(chain),
                Object::Rule(rule) => objects.rules.push(rule),
                Object::Set(set) => objects.sets.push(set),
                Object::Counter(counter) => objects.counters.push(counter),
            }
        }
        objects
    }

    /// `None` unless the table holds exactly what [`super::script`] writes.
    fn read(self, interface: &str) -> Option<Table> {
        let mut table = Table::default();
        let mark_incoming = self.mark_incoming()?;
        let judge_sources = self.judges_sources(interface)?;
        if self.chains.len() != usize::from(mark_incoming.is_some()) + usize::from(judge_sources) {
            return None;
        }
        match (self.sets.as_slice(), self.counters.as_slice()) {
            ([], []) if !judge_sources => {}
            ([_, _, _], [Counter { name, packets }]) if judge_sources && name == STRANGERS => {
                table.refusals.strangers = *packets;
                for set in &self.sets {
                    set.read_into(&mut table)?;
                }
            }
            _ => return None,
        }
        table.judged_peers = table.refusals.peers.keys().copied().collect();
        table.firewall = Some(Firewall { mark_incoming, judge_sources, altered: false });
        Some(table)
    }

    /// `None` when the chain is altered, `Some(None)` when there is no such chain.
    fn mark_incoming(&self) -> Option<Option<IncomingMark>> {
        let mark = self.rules_of(&MARK_INCOMING).next().and_then(|expressions| {
            let port = expressions.pointer("/0/match/right")?.as_u64()?;
            let mark = expressions.pointer("/1/mangle/value/|/1")?.as_u64()?;
            Some(IncomingMark { port: u16::try_from(port).ok()?, mark: u32::try_from(mark).ok()? })
        });
        let rules: Vec<Rule> = mark.iter().map(mark_incoming).collect();
        let there = self.has_chain(&MARK_INCOMING, &rules)?;
        // Our chain always has its rule.
        (there == mark.is_some()).then_some(mark)
    }

    fn judges_sources(&self, interface: &str) -> Option<bool> {
        self.has_chain(&JUDGE_SOURCES, &judge_sources(interface))
    }

    /// Whether the chain exists; `None` when it is altered.
    fn has_chain(&self, chain: &Chain, rules: &[Rule]) -> Option<bool> {
        let Some(found) = self.chains.iter().find(|found| found["name"] == chain.name) else {
            return Some(false);
        };
        let hooked = chain.listed().iter().all(|(key, value)| found.get(key) == Some(value));
        let as_written =
            self.rules_of(chain).map(in_order).eq(rules.iter().map(|rule| in_order(&rule.listed)));
        (hooked && as_written).then_some(true)
    }

    /// The expressions of the chain's rules.
    fn rules_of(&self, chain: &Chain) -> impl Iterator<Item = &Value> {
        self.rules.iter().filter(|rule| rule["chain"] == chain.name).map(|rule| &rule["expr"])
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

impl Set {
    fn read_into(&self, table: &mut Table) -> Option<()> {
        let is = |kind: Value, flags: Option<Value>| {
            self.kind.get("type") == Some(&kind) && self.kind.get("flags") == flags.as_ref()
        };
        let intervals = || Some(json!(["interval"]));
        match self.name.as_str() {
            SOURCES_V4 if is(json!(["ether_addr", "ipv4_addr"]), intervals()) => self.sources(table),
            SOURCES_V6 if is(json!(["ether_addr", "ipv6_addr"]), intervals()) => self.sources(table),
            REFUSED if is(json!("ether_addr"), None) => self.refusals(table),
            _ => None,
        }
    }

    fn sources(&self, table: &mut Table) -> Option<()> {
        let sources: Option<BTreeSet<Source>> = self.elem.iter().map(source).collect();
        table.sources.extend(sources?);
        Some(())
    }

    fn refusals(&self, table: &mut Table) -> Option<()> {
        for element in &self.elem {
            let peer = element.pointer("/elem/val")?.as_str()?.parse().ok()?;
            let packets = element.pointer("/elem/counter/packets")?.as_u64()?;
            table.refusals.peers.insert(peer, packets);
        }
        Some(())
    }
}

/// `{"concat": [LINK ADDRESS, ADDRESSES]}`
fn source(element: &Value) -> Option<Source> {
    let [peer, addresses] = element.get("concat")?.as_array()?.as_slice() else { return None };
    let address = |value: &Value| value.as_str()?.parse().ok();
    let addresses = if let Some(prefix) = addresses.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        IpNet::new(address(prefix.get("addr")?)?, length).ok()?.into()
    } else if let Some(range) = addresses.get("range") {
        AddressRange::new(address(range.get(0)?)?, address(range.get(1)?)?)?
    } else {
        AddressRange::from(address(addresses)?)
    };
    Some(Source { peer: peer.as_str()?.parse().ok()?, addresses })
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

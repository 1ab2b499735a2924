//! What the entries of a mesh mean: records of nodes, pools, and who has which key.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use wireloom_types::PublicKey;

use super::{layout, records::OTHERS_MAX};
use crate::{
    Complaint,
    knowledge::{Handler, Knowledge},
    record,
    store::Object,
};

/// The longest part of a bad name that is shown.
const SHOWN: usize = 253;

/// What is known of the entries besides the nodes' records.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// What all keys of the mesh begin with in etcd: messages show whole keys.
    prefix: String,
    /// The last good version of each pool, by its name.
    pools: BTreeMap<String, IpNet>,
    /// Which node has which key.
    keys: BTreeMap<PublicKey, String>,
    /// What is wrong with entries, by their names.
    bad: BTreeMap<String, String>,
    /// Whether there were more entries than are read, since everything was read last.
    is_overfull: bool,
    /// Something has changed that has not been told.
    is_untold: bool,
}

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nodes,
    Pools,
    Keys,
    Unknown,
}

impl Handler for Entries {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.pools.retain(|name, _| objects.contains_key(&format!("{}{name}", layout::POOLS)));
        self.keys.clear();
        self.bad.clear();
        self.is_overfull = false;
        let mut records = BTreeMap::new();
        for (name, object) in objects {
            match part(&name) {
                (Part::Nodes, node) if record::check_name(node).is_ok() => {
                    records.insert(node.to_owned(), object);
                }
                (part, rest) => self.entry(part, &name, rest, Some(&object)),
            }
        }
        self.is_untold = true;
        self.settle(knowledge);
        knowledge.records(records);
        // Where not all are read, ours may be among the others.
        if let Some(key) = knowledge.publishing.shown_key().filter(|_| !self.is_overfull)
            && !self.keys.contains_key(&key)
        {
            knowledge.publishing.claim_is_gone(&key);
        }
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        match part(name) {
            (Part::Nodes, node) if record::check_name(node).is_ok() => knowledge.record(node, object),
            (part, rest) => {
                self.entry(part, name, rest, object);
                self.is_untold = true;
                if let (Part::Keys, None, Ok(key)) = (part, object, PublicKey::from_base64(rest)) {
                    knowledge.publishing.claim_is_gone(&key);
                }
            }
        }
    }

    fn settle(&mut self, knowledge: &mut Knowledge) {
        if std::mem::take(&mut self.is_untold) {
            self.tell(knowledge);
        }
    }
}

impl Entries {
    pub(super) fn new(mesh: &str) -> Self {
        Self { prefix: layout::prefix(mesh), ..Self::default() }
    }

    /// Takes note of an entry, or that there is none, by its whole name and what follows its part's name in that.
    fn entry(&mut self, part: Part, name: &str, rest: &str, object: Option<&Object>) {
        self.bad.remove(name);
        let is_pool = part == Part::Pools;
        if object.is_some() && !is_pool && self.keys.len() + self.bad.len() >= OTHERS_MAX {
            self.is_overfull = true;
            return;
        }
        let outcome = match (part, object) {
            (Part::Pools, Some(object)) => record::read_pool(rest, &object.value).map(|pool| {
                self.pools.insert(rest.to_owned(), pool);
            }),
            (Part::Pools, None) => {
                self.pools.remove(rest);
                Ok(())
            }
            (Part::Keys, object) => self.key(rest, object),
            (Part::Nodes | Part::Unknown, None) => Ok(()),
            (Part::Nodes, Some(_)) => record::check_name(rest),
            (Part::Unknown, Some(_)) => {
                Err("it is neither in nodes/ nor in pools/ nor in keys/; remove it".into())
            }
        };
        if let Err(what) = outcome {
            self.bad.insert(name.to_owned(), what);
        }
    }

    fn key(&mut self, key: &str, object: Option<&Object>) -> Result<(), String> {
        let parsed = PublicKey::from_base64(key);
        let Some(object) = object else {
            if let Ok(key) = parsed {
                self.keys.remove(&key);
            }
            return Ok(());
        };
        let key = parsed.map_err(|error| format!("{error}; remove the entry"))?;
        self.keys.remove(&key);
        record::check_name(&object.value)?;
        self.keys.insert(key, object.value.clone());
        Ok(())
    }

    fn tell(&self, knowledge: &mut Knowledge) {
        knowledge.pools(&self.pools.values().copied().collect::<BTreeSet<_>>());
        knowledge.key_claims(self.keys.clone());
        let complaint = |(name, what): (&String, &String)| Complaint {
            record: self.prefix.chars().chain(name.chars().take(SHOWN)).collect(),
            what: what.clone(),
        };
        let overfull = self.is_overfull.then(|| Complaint {
            record: format!("{}{}", self.prefix, layout::KEYS),
            what: format!(
                "it holds more than {OTHERS_MAX} entries, and the rest is not read; remove those that no node has"
            ),
        });
        knowledge.complain("etcd", self.bad.iter().map(complaint).chain(overfull).collect());
    }
}

/// What an entry is about, and the rest of its name.
fn part(name: &str) -> (Part, &str) {
    for (part, prefix) in
        [(Part::Nodes, layout::NODES), (Part::Pools, layout::POOLS), (Part::Keys, layout::KEYS)]
    {
        if let Some(rest) = name.strip_prefix(prefix) {
            return (part, rest);
        }
    }
    (Part::Unknown, name)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        mesh::Mesh,
        publishing::{Publishing, Step},
        record::Spelling,
    };

    const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

    fn object(value: &str) -> Object {
        Object { value: value.into(), born: 1, uid: String::new() }
    }

    fn complaints(knowledge: &Knowledge) -> Vec<String> {
        knowledge.complaints().map(ToString::to_string).collect()
    }

    #[test]
    fn no_more_keys_are_read_than_a_mesh_has() {
        let now = Instant::now();
        let mut knowledge = Knowledge::new("n", Mesh::new(None), Publishing::new(Spelling::Snake, 0), now);
        let mut entries = Entries::default();
        let key = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            format!("{}{}", layout::KEYS, PublicKey::from_bytes(bytes))
        };
        let all = (0..=u32::try_from(OTHERS_MAX).unwrap()).map(|number| (key(number), object("n1")));
        let all = all.chain([("pools/p".to_owned(), object(r#"{"cidr": "10.1.0.0/16"}"#))]);
        entries.whole(all.collect(), &mut knowledge);
        entries.change(&key(u32::MAX), Some(&object("n1")), &mut knowledge);
        entries.change("stray", Some(&object("")), &mut knowledge);
        entries.settle(&mut knowledge);
        assert_eq!((entries.keys.len(), entries.pools.len(), entries.bad.len()), (OTHERS_MAX, 1, 0));
        assert_eq!(
            complaints(&knowledge),
            [
                "\"keys/\": it holds more than 20000 entries, and the rest is not read; remove those that no node has"
            ]
        );
        entries.whole(BTreeMap::new(), &mut knowledge);
        assert_eq!(complaints(&knowledge), Vec::<String>::new());
    }

    #[test]
    fn bad_entries_are_left_out_alone_and_named_until_they_are_good() {
        let now = Instant::now();
        let mut knowledge = Knowledge::new("n", Mesh::new(None), Publishing::new(Spelling::Snake, 0), now);
        let mut entries = Entries::new("m");
        let all = [
            ("nodes/n1", r#"{"workloads": ["10.1.1.0/24"]}"#),
            ("pools/good", r#"{"cidr": "10.1.0.0/16"}"#),
            ("pools/bad", r#"{"cidr": "10.2.0.1/16"}"#),
            (&format!("keys/{KEY}"), "n1"),
            ("keys/short", "n1"),
            ("stray", ""),
            ("", ""),
            ("nodes/", "{}"),
            ("pools/", r#"{"cidr": "10.4.0.0/16"}"#),
        ];
        let all = all.map(|(name, value)| (name.to_owned(), object(value)));
        entries.whole(all.into(), &mut knowledge);
        let mesh = knowledge.mesh.deliver(now).unwrap().clone();
        assert_eq!(mesh.pools, ["10.1.0.0/16".parse().unwrap()].into());
        assert_eq!(mesh.nodes.keys().collect::<Vec<_>>(), ["n1"]);
        assert_eq!(entries.keys, [(KEY.parse().unwrap(), "n1".to_owned())].into());
        let bad = complaints(&knowledge);
        let names = ["", "keys/short", "nodes/", "pools/", "pools/bad", "stray"];
        assert_eq!(bad.len(), names.len(), "{bad:?}");
        for (complaint, name) in bad.iter().zip(names) {
            assert!(complaint.starts_with(&format!("\"/wireloom/v1/m/{name}\": ")), "{complaint}");
        }

        // A pool whose new version is bad keeps its last good one.
        entries.change("pools/good", Some(&object("")), &mut knowledge);
        assert_eq!(entries.pools["good"], "10.1.0.0/16".parse().unwrap());
        entries.change("pools/good", Some(&object(r#"{"cidr": "10.3.0.0/16"}"#)), &mut knowledge);
        entries.change("pools/bad", Some(&object(r#"{"cidr": "10.2.0.0/16"}"#)), &mut knowledge);
        entries.change("keys/short", None, &mut knowledge);
        for name in ["stray", "", "nodes/", "pools/", &format!("keys/{KEY}")] {
            entries.change(name, None, &mut knowledge);
        }
        assert_eq!(
            complaints(&knowledge).len(),
            names.len(),
            "what takes long is told once for many changes"
        );
        entries.settle(&mut knowledge);
        assert_eq!(complaints(&knowledge), Vec::<String>::new());
        assert_eq!((entries.pools.len(), entries.keys.len()), (2, 0));
        // What is missing from the whole is gone.
        entries.whole(BTreeMap::new(), &mut knowledge);
        assert!(entries.pools.is_empty());
    }

    #[test]
    fn a_keys_entry_that_is_gone_has_the_record_written_again() {
        let now = Instant::now();
        let mut knowledge = Knowledge::new("n", Mesh::new(None), Publishing::new(Spelling::Snake, 0), now);
        let own = format!("{{\"encrypt\":true,\"public_key\":\"{KEY}\"}}");
        knowledge.publishing.want(Some(&record::read(&own).unwrap())).unwrap();
        let mut entries = Entries::new("m");
        let record = ("nodes/n".to_owned(), object(&own));
        let claim = format!("keys/{KEY}");
        entries.whole([record.clone(), (claim.clone(), object("n"))].into(), &mut knowledge);
        assert_eq!(knowledge.publishing.step(now), Step::Rest);
        entries.change(&claim, None, &mut knowledge);
        assert_eq!(knowledge.publishing.step(now), Step::Put(own.clone()));
        knowledge.publishing.done(Ok(()), now);
        entries.change(&claim, Some(&object("n")), &mut knowledge);
        assert_eq!(knowledge.publishing.step(now), Step::Rest);
        // It was deleted while nobody watched.
        entries.whole([record].into(), &mut knowledge);
        assert_eq!(knowledge.publishing.step(now + Duration::from_secs(1)), Step::Put(own));
    }
}

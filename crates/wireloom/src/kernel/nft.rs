//! The nftables table `inet wireloom`, replaced atomically by `nft -f -`.
//!
//! Whether the table is there the kernel is asked directly: scoped mode has none, needs no `nft`, and
//! starts no process for each look.

use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
};

use netlink_packet_core::{NLM_F_REQUEST, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use serde_json::{Value, json};
use wireloom_plan::kernel::{Firewall, IncomingMark};

use super::{error::Cause, netlink::for_each_message};

const TABLE: &str = "wireloom";
const CHAIN: &str = "mark_incoming";

/// What is in our table; `None` when there is no such table.
///
/// A table of our name whose content is not what we write reads as [`Firewall::default`], so that
/// it differs from every table that we want.
pub(super) fn observe() -> Result<Option<Firewall>, Cause> {
    if !exists()? {
        return Ok(None);
    }
    let output = nft(&["--json", "list", "table", "inet", TABLE], "")?;
    if !output.status.success() {
        return Err(told(&output));
    }
    let listed: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Cause::Told(format!("nft's JSON is unreadable: {error}")))?;
    Ok(Some(parse(&listed).unwrap_or_default()))
}

/// Replaces the table with this content.
pub(super) fn replace(firewall: &Firewall) -> Result<(), Cause> {
    run(&script(firewall))
}

/// Removes the table.
pub(super) fn remove() -> Result<(), Cause> {
    // Adding it first makes the removal of an absent table no error.
    run(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n"))
}

/// One transaction: packets meet the old table or the new one.
fn script(firewall: &Firewall) -> String {
    let mut script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}\n");
    if let Some(IncomingMark { port, mark }) = firewall.mark_incoming {
        script += &format!(
            "add chain inet {TABLE} {CHAIN} {{ type filter hook prerouting priority raw; policy accept; }}\n\
             add rule inet {TABLE} {CHAIN} udp dport {port} meta mark set meta mark or {mark:#x}\n"
        );
    }
    script
}

/// `None` unless the table holds exactly what [`script`] writes.
fn parse(listed: &Value) -> Option<Firewall> {
    let objects = listed.get("nftables")?.as_array()?;
    let of_kind =
        |kind: &str| -> Vec<&Value> { objects.iter().filter_map(|object| object.get(kind)).collect() };
    let known = |object: &&Value| {
        ["metainfo", "table", "chain", "rule"].iter().any(|kind| object.get(kind).is_some())
    };
    if !objects.iter().all(|object| known(&object)) {
        return None;
    }
    let (chains, rules) = (of_kind("chain"), of_kind("rule"));
    if chains.is_empty() && rules.is_empty() {
        return Some(Firewall::default());
    }
    let ([chain], [rule]) = (chains.as_slice(), rules.as_slice()) else { return None };
    let expected = [
        ("name", json!(CHAIN)),
        ("type", json!("filter")),
        ("hook", json!("prerouting")),
        ("prio", json!(-300)),
        ("policy", json!("accept")),
    ];
    if !expected.iter().all(|(key, value)| chain.get(key) == Some(value)) {
        return None;
    }
    let [matches, sets] = rule.get("expr")?.as_array()?.as_slice() else { return None };
    let port = u16::try_from(matches.pointer("/match/right")?.as_u64()?).ok()?;
    let mark = u32::try_from(sets.pointer("/mangle/value/|/1")?.as_u64()?).ok()?;
    let written = expressions(port, mark);
    (rule.get("expr") == Some(&written))
        .then_some(Firewall { mark_incoming: Some(IncomingMark { port, mark }) })
}

/// The rule of [`script`] as `nft --json` lists it (libnftables-json(5)).
fn expressions(port: u16, mark: u32) -> Value {
    json!([
        { "match": { "op": "==", "left": { "payload": { "protocol": "udp", "field": "dport" } }, "right": port } },
        { "mangle": {
            "key": { "meta": { "key": "mark" } },
            "value": { "|": [{ "meta": { "key": "mark" } }, mark] }
        } }
    ])
}

/// Asks the kernel for the table (`NFT_MSG_GETTABLE`, net/netfilter/nf_tables_api.c).
fn exists() -> Result<bool, Cause> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        // A kernel without netfilter has no tables.
        Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => return Ok(false),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&table_request(), 0)?;
    let mut reply = Vec::with_capacity(8 << 10);
    socket.recv(&mut reply, 0)?;
    let mut answer = Err(Cause::Told("nftables gives no answer".into()));
    for_each_message(&reply, |header, bytes| {
        answer = match (header.message_type, bytes.get(16..20).and_then(|code| code.try_into().ok())) {
            (NLMSG_ERROR, Some(code)) => match Errno::from_raw(i32::from_ne_bytes(code).saturating_neg()) {
                // A kernel without nftables has no such table either.
                Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP => Ok(false),
                errno => Err(errno.into()),
            },
            _ => Ok(true),
        };
    })?;
    answer
}

/// `nlmsghdr`, `nfgenmsg` and the table's name (include/uapi/linux/netfilter/nf_tables.h).
fn table_request() -> Vec<u8> {
    const GET_TABLE: u16 = 10 << 8 | 1; // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
    const INET: u8 = 1; // NFPROTO_INET
    const NAME: u16 = 1; // NFTA_TABLE_NAME
    let name: Vec<u8> = TABLE.bytes().chain([0]).collect();
    let attribute = 4 + name.len();
    let length = (16 + 4 + attribute).next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]); // sequence and port
    request.extend([INET, 0, 0, 0]);
    request.extend((attribute as u16).to_ne_bytes());
    request.extend(NAME.to_ne_bytes());
    request.extend(name);
    request.resize(length, 0);
    request
}

fn run(script: &str) -> Result<(), Cause> {
    let output = nft(&["-f", "-"], script)?;
    if output.status.success() { Ok(()) } else { Err(told(&output)) }
}

fn nft(arguments: &[&str], script: &str) -> Result<Output, Cause> {
    let spawned = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Cause::Told("`nft` is not installed; install the Debian package nftables".into()));
        }
        child => child?,
    };
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

fn told(output: &Output) -> Cause {
    let words = String::from_utf8_lossy(&output.stderr);
    Cause::Told(format!("nft says: {}", words.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(port: u16, mark: u32) -> Value {
        json!({ "nftables": [
            { "metainfo": { "version": "1.0.6", "json_schema_version": 1 } },
            { "table": { "family": "inet", "name": "wireloom", "handle": 1 } },
            { "chain": { "family": "inet", "table": "wireloom", "name": "mark_incoming", "handle": 1,
                         "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept" } },
            { "rule": { "family": "inet", "table": "wireloom", "chain": "mark_incoming", "handle": 2,
                        "expr": expressions(port, mark) } },
        ] })
    }

    #[test]
    fn the_script_replaces_the_table_in_one_transaction() {
        let firewall = Firewall { mark_incoming: Some(IncomingMark { port: 51820, mark: 0xa }) };
        assert_eq!(
            script(&firewall),
            "add table inet wireloom\ndelete table inet wireloom\nadd table inet wireloom\n\
             add chain inet wireloom mark_incoming { type filter hook prerouting priority raw; policy accept; }\n\
             add rule inet wireloom mark_incoming udp dport 51820 meta mark set meta mark or 0xa\n"
        );
    }

    #[test]
    fn what_was_written_is_read_back() {
        let expected = Firewall { mark_incoming: Some(IncomingMark { port: 51820, mark: 0xa }) };
        assert_eq!(parse(&listed(51820, 0xa)), Some(expected));
    }

    #[test]
    fn whatever_else_is_in_it_differs_from_all_that_we_want() {
        let mut second_rule = listed(51820, 0xa);
        let rule = second_rule["nftables"][3].clone();
        second_rule["nftables"].as_array_mut().unwrap().push(rule);
        let mut set = listed(51820, 0xa);
        set["nftables"].as_array_mut().unwrap().push(json!({ "set": {} }));
        let mut other_hook = listed(51820, 0xa);
        other_hook["nftables"][2]["chain"]["hook"] = json!("input");
        let mut other_rule = listed(51820, 0xa);
        other_rule["nftables"][3]["rule"]["expr"][0]["match"]["op"] = json!("!=");
        for listed in [second_rule, set, other_hook, other_rule] {
            assert_eq!(parse(&listed), None);
        }
    }
}

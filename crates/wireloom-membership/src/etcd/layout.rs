//! Where things are in etcd.
//!
//! ```text
//!  /wireloom/v1/MESH/nodes/NAME    a node's record: JSON, the fields of a node in mesh.toml
//!  /wireloom/v1/MESH/pools/NAME    a pool: {"cidr": "10.161.0.0/16"}
//!  /wireloom/v1/MESH/keys/KEY      the name of the node that has this public key (base64, as wg prints it)
//! ```
//!
//! A key's entry is written in the same transaction as the record that says the key, and only if there is none: so no
//! two nodes have the same key, and its create revision says who had it first. Base64 has slashes: what follows `keys/`
//! is one key, however many there are.

/// What nodes' records are called inside a mesh.
pub(super) const NODES: &str = "nodes/";

/// What pools are called inside a mesh.
pub(super) const POOLS: &str = "pools/";

/// What keys' entries are called inside a mesh.
pub(super) const KEYS: &str = "keys/";

/// What all keys of a mesh begin with.
pub(super) fn prefix(mesh: &str) -> String {
    format!("/wireloom/v1/{mesh}/")
}

/// The end of the range of all keys with this prefix: the first key after them.
pub(super) fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // The prefixes here end with a slash, so nothing overflows.
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_has_its_prefix_and_nothing_else() {
        let (begin, end) = (prefix("m"), end(&prefix("m")));
        let holds = |key: &str| (begin.as_bytes()..end.as_slice()).contains(&key.as_bytes());
        assert!(
            holds("/wireloom/v1/m/nodes/a") && holds("/wireloom/v1/m/keys/+/~") && holds("/wireloom/v1/m/")
        );
        assert!(
            !holds("/wireloom/v1/m2/nodes/a")
                && !holds("/wireloom/v1/m0")
                && !holds("/wireloom/v1/l/nodes/a")
        );
    }
}

//! Allowed-IPs: a longest-prefix-match table for IPv4 and IPv6.

use std::net::IpAddr;

use ipnet::IpNet;

/// A map from networks to values. A lookup returns the value of the longest prefix that contains the address.
#[derive(Clone, Debug)]
pub(crate) struct AllowedIps<T> {
    v4: Trie<u32, T>,
    v6: Trie<u128, T>,
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self { v4: Trie::default(), v6: Trie::default() }
    }
}

impl<T> AllowedIps<T> {
    /// Maps a network to a value and returns the value that it had. Host bits of the network are ignored.
    pub(crate) fn insert(&mut self, network: IpNet, value: T) -> Option<T> {
        match network {
            IpNet::V4(net) => self.v4.insert(net.network().to_bits(), net.prefix_len(), value),
            IpNet::V6(net) => self.v6.insert(net.network().to_bits(), net.prefix_len(), value),
        }
    }

    /// Removes a network and returns its value. Longer and shorter prefixes stay. Host bits are ignored.
    pub(crate) fn remove(&mut self, network: IpNet) -> Option<T> {
        match network {
            IpNet::V4(net) => self.v4.remove(net.network().to_bits(), net.prefix_len()),
            IpNet::V6(net) => self.v6.remove(net.network().to_bits(), net.prefix_len()),
        }
    }

    /// The value of the longest prefix that contains the address.
    #[must_use]
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }
}

/// The bits of an address, the most significant first.
trait Bits: Copy {
    const LEN: u8;

    /// The bit at `position`, counted from the most significant one, which is 0. `position` is less than `LEN`.
    fn bit(self, position: u8) -> usize;

    /// The number of leading bits that two addresses share.
    fn shared(self, other: Self) -> u8;
}

impl Bits for u32 {
    const LEN: u8 = 32;

    fn bit(self, position: u8) -> usize {
        (self >> (31 - position) & 1) as usize
    }

    fn shared(self, other: Self) -> u8 {
        (self ^ other).leading_zeros() as u8
    }
}

impl Bits for u128 {
    const LEN: u8 = 128;

    fn bit(self, position: u8) -> usize {
        (self >> (127 - position) & 1) as usize
    }

    fn shared(self, other: Self) -> u8 {
        (self ^ other).leading_zeros() as u8
    }
}

/// A binary trie with compressed paths. The nodes are in one vector, so that a copy, as every change of the routes
/// makes, is one pass over memory.
#[derive(Clone, Debug)]
struct Trie<K, T> {
    nodes: Vec<Node<K, T>>,
    /// Indices in `nodes` that are not in use.
    free: Vec<u32>,
    root: u32,
}

#[derive(Clone, Debug)]
struct Node<K, T> {
    key: K,
    len: u8,
    /// `None` when the node only branches and is not a network itself. Such a node has two children.
    value: Option<T>,
    children: [u32; 2],
}

/// No node.
const NIL: u32 = u32::MAX;

/// The place in the trie that refers to a node.
#[derive(Clone, Copy)]
enum Link {
    Root,
    Child(u32, usize),
}

impl<K, T> Default for Trie<K, T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NIL }
    }
}

impl<K: Bits, T> Trie<K, T> {
    fn lookup(&self, key: K) -> Option<&T> {
        let mut best = None;
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            if node.key.shared(key) < node.len {
                break;
            }
            best = node.value.as_ref().or(best);
            if node.len == K::LEN {
                break;
            }
            at = node.children[key.bit(node.len)];
        }
        best
    }

    fn insert(&mut self, key: K, len: u8, value: T) -> Option<T> {
        let mut link = Link::Root;
        loop {
            let at = self.follow(link);
            let Some(node) = self.nodes.get_mut(at as usize) else {
                let leaf = self.allocate(key, len, Some(value));
                self.set(link, leaf);
                return None;
            };
            let shared = node.key.shared(key).min(node.len).min(len);
            if shared == node.len && shared == len {
                return node.value.replace(value);
            }
            if shared == node.len {
                link = Link::Child(at, key.bit(shared));
                continue;
            }
            let old_side = node.key.bit(shared);
            if shared == len {
                let parent = self.allocate(key, len, Some(value));
                self.set(Link::Child(parent, old_side), at);
                self.set(link, parent);
            } else {
                let branch = self.allocate(key, shared, None);
                let leaf = self.allocate(key, len, Some(value));
                self.set(Link::Child(branch, old_side), at);
                self.set(Link::Child(branch, 1 - old_side), leaf);
                self.set(link, branch);
            }
            return None;
        }
    }

    fn remove(&mut self, key: K, len: u8) -> Option<T> {
        let mut parent_link = Link::Root;
        let mut link = Link::Root;
        loop {
            let at = self.follow(link);
            let node = self.nodes.get_mut(at as usize)?;
            if node.key.shared(key) < node.len || node.len > len {
                return None;
            }
            if node.len == len {
                let value = node.value.take()?;
                self.splice(link);
                // A parent that only branched has one child now, and is not needed any more.
                if let Link::Child(parent, _) = link
                    && self.nodes[parent as usize].value.is_none()
                {
                    self.splice(parent_link);
                }
                return Some(value);
            }
            parent_link = link;
            link = Link::Child(at, key.bit(node.len));
        }
    }

    /// Replaces a node without a value by its only child, or by nothing. A node with two children stays.
    fn splice(&mut self, link: Link) {
        let at = self.follow(link);
        let ([NIL, heir] | [heir, NIL]) = self.nodes[at as usize].children else {
            return;
        };
        self.set(link, heir);
        self.free.push(at);
    }

    fn allocate(&mut self, key: K, len: u8, value: Option<T>) -> u32 {
        let node = Node { key, len, value, children: [NIL; 2] };
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    fn follow(&self, link: Link) -> u32 {
        match link {
            Link::Root => self.root,
            Link::Child(at, side) => self.nodes[at as usize].children[side],
        }
    }

    fn set(&mut self, link: Link, to: u32) {
        match link {
            Link::Root => self.root = to,
            Link::Child(at, side) => self.nodes[at as usize].children[side] = to,
        }
    }
}

#[cfg(test)]
mod tests;

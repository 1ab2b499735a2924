//! What other programs have in nftables, as far as it is known by its chains. Those of iptables are there too, unless
//! they are of its legacy variant.

use std::collections::BTreeSet;

use wireloom_plan::health::{DroppingChain, Hook, MarkUser};

use super::{
    TABLE,
    netlink::{self, INET, attribute, first_attribute, nested, text},
};
use crate::error::Cause;

/// What other programs have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// Base chains that drop what they do not accept.
    pub(crate) droppers: BTreeSet<DroppingChain>,
    /// Programs with marks of their own.
    pub(crate) mark_users: BTreeSet<MarkUser>,
}

impl Others {
    /// Reads all chains of nftables.
    pub(crate) fn observe() -> Result<Self, Cause> {
        const GET_CHAIN: u16 = 4;
        Ok(Self::of(&netlink::dump(GET_CHAIN)?))
    }

    pub(super) fn of(chains: &[Vec<u8>]) -> Self {
        let chains = || chains.iter().filter_map(|chain| Chain::read(chain)).filter(|chain| !chain.is_ours());
        Self {
            droppers: chains().filter_map(|chain| chain.drops()).collect(),
            mark_users: chains().filter_map(|chain| chain.mark_user()).collect(),
        }
    }
}

/// A chain, as `nf_tables_fill_chain_info` of net/netfilter/nf_tables_api.c writes it.
struct Chain<'a> {
    /// `NFPROTO_…` of include/uapi/linux/netfilter.h.
    family: u8,
    table: &'a [u8],
    name: &'a [u8],
    /// `NF_INET_…`; `None` unless it is a base chain.
    hook: Option<u32>,
    /// `NF_ACCEPT` or `NF_DROP`.
    policy: Option<u32>,
}

impl<'a> Chain<'a> {
    fn read(payload: &'a [u8]) -> Option<Self> {
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        const HOOK_NUMBER: u16 = 1;
        let hook = attribute(payload, HOOK).and_then(|hook| {
            nested(hook).find(|(kind, _)| *kind == HOOK_NUMBER).and_then(|(_, value)| number(value))
        });
        Some(Self {
            family: *payload.first()?,
            table: text(first_attribute(payload)?),
            name: text(attribute(payload, NAME)?),
            hook,
            policy: attribute(payload, POLICY).and_then(number),
        })
    }

    fn is_ours(&self) -> bool {
        self.family == INET && self.table == TABLE.as_bytes()
    }

    fn drops(&self) -> Option<DroppingChain> {
        const NF_DROP: u32 = 0;
        let hook = match self.hook? {
            1 => Hook::Input,
            2 => Hook::Forward,
            _ => return None,
        };
        let family = match self.family {
            INET => "inet",
            2 => "ip",
            10 => "ip6",
            _ => return None,
        };
        let lossy = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (self.policy == Some(NF_DROP)).then(|| DroppingChain {
            family: family.to_owned(),
            table: lossy(self.table),
            chain: lossy(self.name),
            hook,
        })
    }

    /// kube-proxy's chains of iptables begin with `KUBE-`, and its nftables table has its name (`kubeProxyTable` in
    /// pkg/proxy/nftables/proxier.go). kubelet alone makes `KUBE-FIREWALL`, `KUBE-KUBELET-CANARY` and the like.
    fn mark_user(&self) -> Option<MarkUser> {
        let of_kube_proxy = self.table == b"kube-proxy"
            || [&b"KUBE-SERVICES"[..], b"KUBE-NODEPORTS", b"KUBE-POSTROUTING"].contains(&self.name);
        if of_kube_proxy {
            Some(MarkUser::KubeProxy)
        } else if self.name.windows(5).any(|part| part == b"cali-") {
            Some(MarkUser::Calico)
        } else if self.name.starts_with(b"CILIUM_") {
            Some(MarkUser::Cilium)
        } else {
            None
        }
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn chain(family: u8, table: &str, name: &str, base: Option<(u32, u32)>) -> Vec<u8> {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend(attribute(1, format!("{table}\0").as_bytes()));
        payload.extend(attribute(2, &7_u64.to_be_bytes()));
        payload.extend(attribute(3, format!("{name}\0").as_bytes()));
        if let Some((hook, policy)) = base {
            let hook = [attribute(1, &hook.to_be_bytes()), attribute(2, &0_i32.to_be_bytes())].concat();
            payload.extend(attribute(4 | 1 << 15, &hook));
            payload.extend(attribute(5, &policy.to_be_bytes()));
        }
        payload
    }

    #[test]
    fn chains_that_drop_and_chains_of_known_programs_are_found() {
        let chains = [
            chain(2, "filter", "FORWARD", Some((2, 0))),
            chain(10, "filter", "INPUT", Some((1, 0))),
            chain(1, "firewall", "in", Some((1, 1))),
            chain(1, "firewall", "out", Some((3, 0))),
            chain(1, "wireloom", "forward", Some((2, 0))),
            chain(7, "bridge", "forward", Some((2, 0))),
            chain(2, "filter", "KUBE-FIREWALL", None),
        ];
        let dropping = |family: &str, chain: &str, hook| DroppingChain {
            family: family.into(),
            table: "filter".into(),
            chain: chain.into(),
            hook,
        };
        let expected = Others {
            droppers: [dropping("ip", "FORWARD", Hook::Forward), dropping("ip6", "INPUT", Hook::Input)]
                .into(),
            mark_users: BTreeSet::new(),
        };
        assert_eq!(Others::of(&chains), expected);
        let users = |name: &str, table: &str| Others::of(&[chain(2, table, name, None)]).mark_users;
        assert_eq!(users("KUBE-SERVICES", "nat"), [MarkUser::KubeProxy].into());
        assert_eq!(users("services", "kube-proxy"), [MarkUser::KubeProxy].into());
        assert_eq!(users("filter-cali-FORWARD", "calico"), [MarkUser::Calico].into());
        assert_eq!(users("CILIUM_FORWARD", "filter"), [MarkUser::Cilium].into());
    }

    #[test]
    fn a_truncated_message_is_no_panic() {
        let whole = chain(2, "filter", "FORWARD", Some((2, 0)));
        for cut in 0..whole.len() {
            assert!(Others::of(&[whole[..cut].to_vec()]).mark_users.is_empty());
        }
    }
}

//! The firewall's chains, and the sysctls that let packets pass strict source validation.
//!
//! In scoped mode, source validation runs after destination NAT, with the addresses swapped and without the mark. A
//! reply of a node port's connection, say, comes in by the underlay, from an address to which a rule leads into the
//! tunnel; and so does every packet of a peer that encrypts later than we do. So `rp_filter` becomes loose where it is
//! strict. The guard refuses from the underlay what that lets in: our own workloads' addresses.
//!
//! In host mode, with `rp_filter=1` the kernel looks up the route back to the sender of each incoming packet. In host
//! mode that route leads into the tunnel for unmarked packets, so an incoming WireGuard packet must carry the mark
//! (nftables) and the validation must use it (`src_valid_mark`, set on the underlay only, because setting it globally
//! breaks other software). ARP requests are validated too and carry no mark, so `rp_filter` becomes loose on the
//! underlay; otherwise the mesh would never come up.

use std::collections::BTreeMap;

use wireloom_types::SourceCheck;

use super::View;
use crate::{
    firewall::{Firewall, IncomingMark},
    sysctl::{ALL, UnderlaySysctl},
};

/// `rp_filter`: sources are not validated.
const OFF: u8 = 0;

/// `rp_filter`: the source must be reachable through any interface
/// (Documentation/networking/ip-sysctl.rst).
const LOOSE: u8 = 2;

impl View<'_> {
    pub(super) fn firewall(&self) -> Option<Firewall> {
        let mark = IncomingMark { port: self.settings.listen_port, mark: self.settings.fwmark };
        let firewall = Firewall {
            mark_incoming: self.settings.encrypt_host_traffic.then(|| mark.clone()),
            judge_sources: self.judges_sources(),
            guard: self.guard(self.settings.encrypt_host_traffic.then_some(mark)),
            segment_v6: None,
            altered: false,
        };
        // Not worth a table of its own, which takes nft.
        (firewall != Firewall::default())
            .then(|| Firewall { segment_v6: self.host.paths.segment_v6(), ..firewall })
    }

    /// `rp_filter` of our own interface, whose device or firewall checks sources. It is off: strict or loose, it would
    /// drop what a peer sends through the tunnel before we encrypt too, if the interface has no IPv4 address (`no_addr`
    /// in `__fib_validate_source`, net/ipv4/fib_frontend.c), and on a link what no route leads back to, such as the
    /// errors of a router beyond a peer. Where it has an address, and only allowed-IPs can be its sources, loose does
    /// no harm. And where all interfaces are strict it can only be loose, because the greater value applies.
    pub(super) fn rp_filter(&self) -> u8 {
        let has_ipv4 = self.addresses().iter().any(|address| address.addr().is_ipv4());
        let limited = self.settings.source_check == SourceCheck::AllowedIps;
        if self.host.all_strict || (has_ipv4 && limited) { LOOSE } else { OFF }
    }

    /// The sysctls by interface. IPv6 has no source validation by sysctl.
    pub(super) fn sysctls(&self) -> BTreeMap<String, BTreeMap<UnderlaySysctl, u8>> {
        let no_redirects = || (ALL.to_owned(), BTreeMap::from([(UnderlaySysctl::SendRedirects, 0)]));
        let mut sysctls: BTreeMap<_, _> = self.in_link_mode().then(no_redirects).into_iter().collect();
        if !self.settings.encrypt_host_traffic {
            let loose = BTreeMap::from([(UnderlaySysctl::RpFilter, LOOSE)]);
            sysctls.extend(self.host.strict.iter().map(|name| (name.clone(), loose.clone())));
            return sysctls;
        }
        let carries_ipv4 = |name: &&String| {
            let on_it = &self.host.underlays[*name].addresses;
            self.own.addresses.iter().any(|address| address.is_ipv4() && on_it.contains(address))
        };
        let wanted = BTreeMap::from([(UnderlaySysctl::RpFilter, LOOSE), (UnderlaySysctl::SrcValidMark, 1)]);
        let underlays = self.host.underlays.keys().filter(carries_ipv4);
        sysctls.extend(underlays.map(|name| (name.clone(), wanted.clone())));
        sysctls
    }
}

//! What host mode needs so that strict source validation lets WireGuard's packets in.
//!
//! With `rp_filter=1` the kernel looks up the way back to the sender of each incoming packet. In
//! host mode that way leads into the tunnel for unmarked packets, so an incoming WireGuard packet
//! must carry the mark (nftables) and validation must use it (`src_valid_mark`; on the underlay
//! alone, since the global switch breaks other software). ARP requests are validated too and
//! carry no mark, so `rp_filter` itself becomes loose there, or the mesh never comes up.

use std::collections::BTreeMap;

use super::View;
use crate::kernel::{ALL, Firewall, IncomingMark, UnderlaySysctl};

/// `rp_filter`: the source must be reachable, through whatever interface
/// (Documentation/networking/ip-sysctl.rst).
const LOOSE: u8 = 2;

impl View<'_> {
    pub(super) fn firewall(&self) -> Option<Firewall> {
        let mark = IncomingMark { port: self.settings.listen_port, mark: self.settings.fwmark };
        let firewall = Firewall {
            mark_incoming: self.settings.encrypt_host_traffic.then_some(mark),
            judge_sources: self.judges_sources(),
            altered: false,
        };
        (firewall.mark_incoming.is_some() || firewall.judge_sources).then_some(firewall)
    }

    /// By interface. IPv6 has no source validation by sysctl.
    pub(super) fn sysctls(&self) -> BTreeMap<String, BTreeMap<UnderlaySysctl, u8>> {
        let no_redirects = || (ALL.to_owned(), BTreeMap::from([(UnderlaySysctl::SendRedirects, 0)]));
        let mut sysctls: BTreeMap<_, _> = self.is_link().then(no_redirects).into_iter().collect();
        if !self.settings.encrypt_host_traffic {
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

//! `wireloom down`: the machine as it was before the first start.

use crate::{kernel::Observed, op::Op};

/// Remove everything of ours: rules first, so that no packet meets a table in pieces.
///
/// An interface of our name that is not ours stays, and so do foreign routes in our table.
pub fn teardown(observed: &Observed) -> Vec<Op> {
    let mut ops = super::rules::changes(&observed.rules, &[].into());
    let routes = observed.routes.iter().filter(|route| route.is_ours()).cloned();
    ops.extend(routes.map(Op::RemoveRoute));
    if observed.link.as_ref().is_some_and(crate::kernel::Link::is_ours) {
        ops.push(Op::RemoveLink);
    }
    if observed.firewall.is_some() {
        ops.push(Op::RemoveFirewall);
    }
    for (interface, saved) in &observed.saved_sysctls {
        ops.extend(
            saved
                .keys()
                .map(|sysctl| Op::RestoreUnderlaySysctl { interface: interface.clone(), sysctl: *sysctl }),
        );
    }
    ops
}

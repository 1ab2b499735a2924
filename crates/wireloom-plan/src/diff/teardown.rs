//! `wireloom down`: back to the machine as it was before the first start.

use crate::{
    observed::{Interface, Observed},
    op::{FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    routing::Rule,
};

/// The operations that remove everything of ours: rules first, so that no packet meets half a table.
///
/// An interface with our name that is not ours stays, and so do foreign rules and routes of our table: only what
/// carries our protocol number goes. An unscoped rule of another program, which only an upgrade replaces, stays too.
pub fn teardown(observed: &Observed) -> Vec<Op> {
    let rules = super::rules::changes(&observed.rules, &[].into(), Rule::is_ours);
    let mut ops: Vec<Op> = rules.into_iter().map(Op::Rtnetlink).collect();
    let routes = observed.routes.iter().filter(|route| route.is_ours()).cloned();
    ops.extend(routes.map(|route| RtnetlinkOp::RemoveRoute(route).into()));
    if observed.interface.as_ref().is_some_and(Interface::is_ours) {
        ops.push(InterfaceOp::Remove.into());
    }
    if observed.firewall.is_some() {
        ops.push(FirewallOp::Remove.into());
    }
    for (interface, saved) in &observed.saved_sysctls {
        ops.extend(
            saved
                .keys()
                .map(|sysctl| SysctlOp::Restore { interface: interface.clone(), sysctl: *sysctl }.into()),
        );
    }
    ops
}

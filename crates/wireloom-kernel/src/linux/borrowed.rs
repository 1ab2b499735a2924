//! The addresses that pods on this node have borrowed from other nodes' blocks.

use std::collections::BTreeSet;

use ipnet::IpNet;
use nix::net::if_::if_indextoname;
use wireloom_plan::borrowed::Borrowable;

use super::Linux;
use crate::{
    error::{Attempt, Error},
    rtnetlink::route,
};

impl Linux {
    /// The addresses that pods here have borrowed, as prefixes of one address each, by the routes of the table `main`.
    ///
    /// # Errors
    /// The routes cannot be read.
    pub fn borrowed(&mut self, borrowable: &Borrowable) -> Result<BTreeSet<IpNet>, Error> {
        let routes = route::observe_direct(&mut self.rtnetlink, |to| borrowable.may_hold(to))
            .attempt(|| "list the routes to pods".into())?;
        // An interface without a name was removed this moment.
        let named = routes.into_iter().filter_map(|(destination, interface)| {
            Some((destination, if_indextoname(interface).ok()?.into_string().ok()?))
        });
        let named: Vec<(IpNet, String)> = named.collect();
        Ok(borrowable
            .borrowed(named.iter().map(|(destination, interface)| (*destination, interface.as_str()))))
    }
}

//! `wireloom-demo link`: four routers on one link with BIRD, each step measured with real packets.

mod measure;
mod table;

use std::{process::ExitCode, time::Instant};

use wireloom_lab::{Link, Topology, become_root, guide, require, routing};

use self::table::Row;
use super::keep;

/// The router that the service is reached on, and the one that it is reached on once that is dead: indices into the
/// laboratory's nodes.
const PRIMARY: usize = 2;
const BACKUP: usize = 3;
const ROUTERS: u8 = 4;

pub(super) fn run(keep: bool) -> anyhow::Result<ExitCode> {
    require(&["ip", "nft", "unshare", "mount", "bird", "birdc"])?;
    if keep {
        // The printed commands use them.
        require(&["nsenter", "ping"])?;
    }
    become_root()?;
    let began = Instant::now();
    let wireloom = crate::program("wireloom")?;
    let mut link = Link::new(&wireloom, ROUTERS, Topology::Full)?;
    for (router, interface) in [(PRIMARY, "primary0"), (BACKUP, "backup0")] {
        link.serve(router, interface)?;
    }
    table::introduction(ROUTERS.into());
    for node in &link.lab.nodes {
        // An operator's own rules. The agent's would not do: a mesh file declares each prefix for one node, while
        // OSPF finds prefixes that nobody declared, one of them behind two routers.
        node.host.space.feed("nft -f -", guide::SOURCE_CHECK)?;
        routing::bird(node, guide::BIRD_OSPF)?;
    }

    let mut rows = Vec::new();
    let mut show = |row: Row| {
        table::show(&row);
        rows.push(row);
    };
    show(measure::learning(&link)?);
    show(measure::hosts(&link)?);
    measure::failover(&mut link)?.into_iter().for_each(&mut show);
    show(measure::forgery(&link)?);

    let kept = table::conclusion(&rows, began.elapsed());
    if !kept {
        for node in &link.lab.nodes {
            anstream::eprintln!("\nBIRD's log on {}:\n{}", node.name, routing::bird_log(node)?);
        }
    }
    if keep {
        keep::link(link)?;
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

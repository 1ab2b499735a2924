//! A worker's end of the link.

use std::{net::IpAddr, ops::Deref, sync::Arc};

use arc_swap::Guard;
use wireloom_proto::Instant;

use super::{Link, NeighbourTable, PublishedTable};
use crate::punt::Punting;

/// Who knows where frames go.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The engine's, who decides everything.
    Whole(Link),
    /// A queue's, who sends the frames for one peer, and punts all others.
    Queue(QueueEnd),
}

#[derive(Debug)]
pub(crate) struct QueueEnd {
    table: PublishedTable,
    pub(crate) punting: Punting,
}

/// The neighbours, for as long as a batch takes.
pub(crate) enum Neighbours<'a> {
    Own(&'a NeighbourTable),
    Published(Guard<Arc<NeighbourTable>>),
}

impl Deref for Neighbours<'_> {
    type Target = NeighbourTable;

    fn deref(&self) -> &NeighbourTable {
        match self {
            Self::Own(table) => table,
            Self::Published(table) => table,
        }
    }
}

impl LinkEnd {
    pub(crate) fn of_queue(table: &PublishedTable, punting: &Punting) -> Self {
        Self::Queue(QueueEnd { table: Arc::clone(table), punting: punting.clone() })
    }

    pub(crate) fn neighbours(&self) -> Neighbours<'_> {
        match self {
            Self::Whole(link) => Neighbours::Own(link.table()),
            Self::Queue(end) => Neighbours::Published(end.neighbours()),
        }
    }

    /// What the network told about the way to the peers at this address.
    pub(crate) fn learn_path_mtu(&mut self, now: Instant, remote: IpAddr, path_mtu: u16) {
        match self {
            Self::Whole(link) => link.learn_path_mtu(now, remote, path_mtu),
            Self::Queue(end) => end.punting.punt_path_mtu(remote, path_mtu),
        }
    }
}

impl QueueEnd {
    pub(crate) fn neighbours(&self) -> Guard<Arc<NeighbourTable>> {
        self.table.load()
    }
}

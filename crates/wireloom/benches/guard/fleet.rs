//! Two nodes with an agent each, and the settings between which they are switched.

use std::path::Path;

use anyhow::Context as _;
use wireloom_lab::{
    FAMILIES, Lab, Layout, Matrix, PATIENCE, Promise,
    agent::{self, Agent},
    mesh::{KeyPair, Mesh, write_key, write_settings},
    until,
};

use crate::measuring::{End, RENO, Way};

/// Bytes. That of the tunnel over IPv6, which network plug-ins give to pods.
const MTU: u32 = 1420;

/// Another program's table, which makes the kernel track connections where the guard does.
const TRACKING: &str = "table inet tracking {
    chain prerouting { type filter hook prerouting priority 0; ct state new accept; }
    chain output { type filter hook output priority 0; ct state new accept; }
}
";

/// What both nodes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// `guard = false`: no table, no connection tracking.
    Off,
    /// `guard = false`, and connections are tracked for another program's table.
    Tracking,
    /// `guard = true`.
    On,
}

impl Setting {
    /// All, in the order in which they are measured and shown.
    pub(crate) const ALL: [Self; 3] = [Self::Off, Self::Tracking, Self::On];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Off => "guard = false",
            Self::Tracking => "tracking alone",
            Self::On => "guard = true",
        }
    }
}

/// From where to where a load goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    PodToPod,
    HostToPod,
    HostToHost,
}

impl Route {
    pub(crate) const ALL: [Self; 3] = [Self::PodToPod, Self::HostToPod, Self::HostToHost];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::PodToPod => "pod → pod, encrypted",
            Self::HostToPod => "host → pod, direct",
            Self::HostToHost => "host → host, direct",
        }
    }
}

/// The nodes. They go, with everything that runs on them, when this is dropped.
pub(crate) struct Fleet {
    lab: Lab,
    _agents: Vec<Agent>,
}

impl Fleet {
    /// Makes the nodes and starts their agents.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let wireloom = Path::new(env!("CARGO_BIN_EXE_wireloom"));
        let lab = Lab::new(&Layout { pod_mtu: MTU, ..Layout::default() })?;
        for place in lab.nodes.iter().flat_map(|node| [&node.host, &node.pods[0]]) {
            place.space.set_sysctls(&[RENO])?;
        }
        let keys: Vec<_> =
            lab.nodes.iter().map(|node| KeyPair::generate(wireloom, node)).collect::<Result<_, _>>()?;
        Mesh::of(&lab, &keys).write(&lab)?;
        for (node, key) in lab.nodes.iter().zip(&keys) {
            write_key(node, key)?;
            write_settings(node, "")?;
        }
        let agents = lab.nodes.iter().map(|node| Agent::start(wireloom, node)).collect::<Result<_, _>>()?;
        Ok(Self { lab, _agents: agents })
    }

    /// Switches both nodes, and waits until their agents have nothing left to do, and until everything goes its way:
    /// between pods in the tunnel, which it does once the peers are proven.
    pub(crate) fn switch(&self, setting: Setting) -> anyhow::Result<()> {
        let plan = format!("{} plan", env!("CARGO_BIN_EXE_wireloom"));
        for node in &self.lab.nodes {
            // `destroy` needs a newer nft than Debian 12 has.
            node.host.space.feed("nft -f -", "table inet tracking\ndelete table inet tracking\n")?;
            if setting == Setting::Tracking {
                node.host.space.feed("nft -f -", TRACKING)?;
            }
            write_settings(node, &format!("guard = {}", setting == Setting::On))?;
        }
        for node in &self.lab.nodes {
            let what = format!("nothing to be left to do on {}", node.name);
            until(PATIENCE, &what, || node.run(&plan).ok())
                .with_context(|| agent::log(node).unwrap_or_default())?;
            let has_guard = node.run("nft list table inet wireloom").is_ok();
            anyhow::ensure!(has_guard == (setting == Setting::On), "{}: {}", node.name, setting.label());
        }
        let broken = Matrix::settle(&self.lab, Promise::SCOPED, PATIENCE)?.broken(Promise::SCOPED);
        anyhow::ensure!(broken.is_empty(), "{}", broken.join("\n"));
        Ok(())
    }

    /// The way of a load, over IPv4.
    pub(crate) fn way(&self, route: Route) -> Way<'_> {
        let [a, b] = [&self.lab.nodes[0], &self.lab.nodes[1]];
        let (from, to) = match route {
            Route::PodToPod => (&a.pods[0], &b.pods[0]),
            Route::HostToPod => (&a.host, &b.pods[0]),
            Route::HostToHost => (&a.host, &b.host),
        };
        let [from, to] =
            [from, to].map(|place| End { space: &place.space, address: place.addresses.of(FAMILIES[0]) });
        Way { from, to }
    }
}

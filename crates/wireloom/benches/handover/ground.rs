//! Two machines with a tunnel between them: the device of the first hands over.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use wireloom_lab::{
    Addresses, FAMILIES, Lab, Layout, Node, PATIENCE, Place,
    device::Device,
    mesh::{KeyPair, PORT},
    until,
};

use crate::{Mode, congestion::RENO, program::Program};

/// The machines. They go, with everything that runs on them, when this is dropped.
pub(crate) struct Ground {
    /// The device that hands over: on the first machine.
    pub(crate) device: Device,
    /// Both ends of the tunnel, with their addresses in it.
    pub(crate) ends: [Place; 2],
    pub(crate) lab: Lab,
    wireloom: PathBuf,
    mode: Mode,
    queues: u16,
    keys: Vec<KeyPair>,
}

impl Ground {
    /// Makes the machines and the tunnel, and waits for pings through it.
    pub(crate) fn new(wireloom: &Path, mode: Mode, queues: u16, peer: &Program) -> anyhow::Result<Self> {
        Self::with_queues(wireloom, mode, queues, None, peer)
    }

    /// As [`Ground::new`], with this many packets in each queue of the first machine's interface.
    pub(crate) fn with_queues(
        wireloom: &Path,
        mode: Mode,
        queues: u16,
        length: Option<u32>,
        peer: &Program,
    ) -> anyhow::Result<Self> {
        let lab = Lab::new(&Layout { nodes: 2, pods: 0, ..Layout::default() })?;
        let nodes = &lab.nodes;
        nodes.iter().try_for_each(|node| node.host.space.set_sysctls(&[RENO]))?;
        let keys =
            nodes.iter().map(|node| KeyPair::generate(wireloom, node)).collect::<Result<Vec<_>, _>>()?;
        let device = start(wireloom, &nodes[0], mode, queues)?;
        // Before it is up: afterwards the kernel drops what is sent while the length changes.
        if let Some(length) = length {
            nodes[0].run(&format!("ip link set wg0 txqueuelen {length}"))?;
        }
        nodes[1].run(&format!("{} wg0", peer.command))?;
        let ends = [0, 1].map(|place| Place {
            name: nodes[place].name.clone(),
            space: nodes[place].host.space.clone(),
            addresses: inner(place),
        });
        let ground = Self { device, ends, lab, wireloom: wireloom.to_owned(), mode, queues, keys };
        for (place, other) in [(0, 1), (1, 0)] {
            ground.configure(place, other)?;
            let node = &ground.lab.nodes[place];
            let Addresses { v4, v6 } = inner(place);
            node.run(&format!("ip address add {v4}/24 dev wg0"))?;
            node.run(&format!("ip address add {v6}/64 dev wg0 nodad"))?;
            node.run("ip link set wg0 mtu 1420 up")?;
        }
        until(PATIENCE, "pings through the tunnel", || ground.works().then_some(()))?;
        Ok(ground)
    }

    /// Gives the first machine's device keys and peer again, after a start afresh.
    pub(crate) fn configure_again(&self) -> anyhow::Result<()> {
        self.configure(0, 1)
    }

    /// Gives the second machine's device its key and peer again, and waits for pings through the tunnel.
    pub(crate) fn be_the_peer_again(&self) -> anyhow::Result<()> {
        self.configure(1, 0)?;
        // The other end takes a session for good that this one has forgotten.
        let ping = format!("ping -n -q -c1 -W1 {}", inner(0).v4);
        until(PATIENCE, "a ping from the second machine", || self.lab.nodes[1].run(&ping).ok())?;
        until(PATIENCE, "pings through the tunnel", || self.works().then_some(()))?;
        Ok(())
    }

    /// Whether the first machine's device has a key.
    pub(crate) fn is_configured(&self) -> bool {
        let key = self.lab.nodes[0].run("wg show wg0 private-key");
        key.is_ok_and(|key| !key.contains("(none)"))
    }

    /// Starts a device on the interface that nobody serves.
    pub(crate) fn start_afresh(&mut self) -> anyhow::Result<()> {
        self.device = start(&self.wireloom, &self.lab.nodes[0], self.mode, self.queues)?;
        Ok(())
    }

    /// Whether a ping in each family is answered within a second.
    pub(crate) fn works(&self) -> bool {
        let [from, to] = &self.ends;
        let answered =
            |family| from.space.run(&format!("ping -n -q -c1 -W1 {}", to.addresses.of(family))).is_ok();
        FAMILIES.into_iter().all(answered)
    }

    fn configure(&self, place: usize, other: usize) -> anyhow::Result<()> {
        let node = &self.lab.nodes[place];
        node.host.space.write("/run/key", &self.keys[place].private)?;
        let Addresses { v4, v6 } = inner(other);
        let endpoint = self.lab.nodes[other].host.addresses.v4;
        node.run(&format!(
            "wg set wg0 private-key /run/key listen-port {PORT} peer {} allowed-ips {v4}/32,{v6}/128 \
             endpoint {endpoint}:{PORT}",
            self.keys[other].public
        ))?;
        Ok(())
    }
}

fn start(wireloom: &Path, node: &Node, mode: Mode, queues: u16) -> anyhow::Result<Device> {
    let queues = queues.to_string();
    let mode = match mode {
        Mode::Destination => &["--persistent"][..],
        Mode::Gateway => &["--persistent", "--peer-lookup", "gateway", "--source-check", "off"],
    };
    let arguments = [&["--threads", &queues][..], mode].concat();
    Device::start(wireloom, &node.host.space, "wg0", &arguments).context("the device that hands over")
}

/// The addresses in the tunnel.
fn inner(place: usize) -> Addresses {
    let last = place as u8 + 1;
    Addresses { v4: [10, 99, 0, last].into(), v6: [0xfd99, 0, 0, 0, 0, 0, 0, last.into()].into() }
}

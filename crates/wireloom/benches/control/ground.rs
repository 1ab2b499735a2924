//! Three machines: the device that is measured, its peer, and a stranger.
//!
//! ```text
//!   peer   10.9.0.1 wg0 ── eth0 192.0.2.1 ─── 192.0.2.2 eth0 ── wg0 10.9.0.2   measured
//!                                                                │
//!   stranger               eth0 198.51.100.1 ─ 198.51.100.2 eth1 ┘
//! ```
//!
//! The stranger's network stands for the rest of the world: the way to 172.16.0.0/12, from which floods appear to come,
//! leads there, and there is the endpoint of all peers that never answer.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use base64ct::{Base64, Encoding as _};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use wireloom_lab::{Holder, PATIENCE, Space, control, until};

use crate::measuring::{End, RENO, Way};

/// The port of every WireGuard here.
pub(crate) const PORT: u16 = 51820;
/// The port at which the peers seem to be that never answer.
const SILENT_PORT: u16 = 9;
/// The measured machine, where its peer and where the stranger reaches it.
pub(crate) const MEASURED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const MEASURED_BY_STRANGERS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// An address that the first of the peers that never answer has inside.
pub(crate) const DEAD: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);

/// The machines. They go, with everything that runs on them, when this is dropped.
pub(crate) struct Ground {
    pub(crate) measured: Space,
    pub(crate) peer: Space,
    pub(crate) stranger: Space,
    /// The command that makes a peer's interface.
    pub(crate) own: String,
    /// The public key of the measured device.
    pub(crate) key: [u8; 32],
    /// Takes what is sent to the peers that never answer: no ICMP error does.
    _silence: UdpSocket,
    _programs: [Child; 2],
    _holders: [Holder; 3],
}

/// Leaves the last processor to the measured device, and returns its number. Absent: there is only one.
pub(crate) fn keep_a_processor_free() -> anyhow::Result<Option<usize>> {
    let this = Pid::from_raw(0);
    let mut allowed = sched_getaffinity(this)?;
    let all: Vec<_> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    let [_, .., last] = all[..] else { return Ok(None) };
    allowed.unset(last)?;
    sched_setaffinity(this, &allowed)?;
    Ok(Some(last))
}

impl Ground {
    /// Makes the machines, the measured device and its peer's by these commands, and the tunnel, and waits for a ping
    /// through it.
    pub(crate) fn new(command: &str, own: &str, processor: Option<usize>) -> anyhow::Result<Self> {
        let (measured_holder, measured) = Holder::new("measured")?;
        let (peer_holder, peer) = Holder::new("peer")?;
        let (stranger_holder, stranger) = Holder::new("stranger")?;
        for space in [&measured, &peer, &stranger] {
            space.set_sysctls(&[
                RENO,
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv4/ip_forward", "0"),
            ])?;
            space.run("ip link set lo up")?;
        }
        // `ip` looks up process ids as those of its own pid namespace.
        for (interface, holder) in [("eth0", &peer_holder), ("eth1", &stranger_holder)] {
            let cable = format!("ip link add {interface} type veth peer name eth0 netns {}", holder.pid());
            measured.network_only().run(&cable)?;
        }
        for (space, interface, address) in [
            (&measured, "eth0", MEASURED),
            (&peer, "eth0", Ipv4Addr::new(192, 0, 2, 1)),
            (&measured, "eth1", MEASURED_BY_STRANGERS),
            (&stranger, "eth0", STRANGER),
        ] {
            space.run(&format!("ip address add {address}/24 dev {interface}"))?;
            space.run(&format!("ip link set {interface} up"))?;
        }
        measured.run(&format!("ip route add 172.16.0.0/12 via {STRANGER}"))?;
        let silence = stranger.inside(|| UdpSocket::bind((STRANGER, SILENT_PORT)))??;

        let pinned =
            processor.map_or(command.to_owned(), |cpu| format!("taskset --cpu-list {cpu} {command}"));
        let programs = [start(&measured, &pinned, "wg0")?, start(&peer, own, "wg0")?];
        let keys = [new_key(&measured)?, new_key(&peer)?];
        for (space, key, number, other) in [(&measured, &keys[1], 2, 1), (&peer, &keys[0], 1, 2)] {
            space.run(&format!(
                "wg set wg0 private-key /run/key listen-port {PORT} \
                 peer {key} allowed-ips {}/32 endpoint 192.0.2.{other}:{PORT}",
                inner(other)
            ))?;
            space.run(&format!("ip address add {}/24 dev wg0", inner(number)))?;
            space.run("ip link set wg0 mtu 1420 up")?;
        }
        let first = format!("ping -q -c 1 -W 1 {}", inner(2));
        until(PATIENCE, "the first ping", || peer.run(&first).ok())?;
        let key = Base64::decode_vec(&keys[0]).ok().and_then(|key| key.try_into().ok());
        Ok(Self {
            measured,
            peer,
            stranger,
            own: own.to_owned(),
            key: key.context("`wg pubkey` printed no key")?,
            _silence: silence,
            _programs: programs,
            _holders: [measured_holder, peer_holder, stranger_holder],
        })
    }

    /// The way from the peer to the measured device, through the tunnel.
    pub(crate) fn way(&self) -> Way<'_> {
        Way {
            from: End { space: &self.peer, address: inner(1) },
            to: End { space: &self.measured, address: inner(2) },
        }
    }

    /// Gives the measured device this many more peers by one request. They never answer. With a keepalive it
    /// begins a handshake with all of them.
    pub(crate) fn add_silent_peers(&self, count: u32, with_keepalive: bool) -> anyhow::Result<()> {
        let mut request = "set=1\n".to_owned();
        for peer in 1..=count {
            let [_, second, third, last] = (u32::from(DEAD) + peer - 1).to_be_bytes();
            // Any number is a public key, and nobody knows the private one.
            let _ = write!(
                request,
                "public_key={peer:064x}\nendpoint={STRANGER}:{SILENT_PORT}\nallowed_ip=10.{second}.{third}.{last}/32\n"
            );
            if with_keepalive {
                request += "persistent_keepalive_interval=25\n";
            }
        }
        request += "\n";
        let answer = control::request(&self.measured, "wg0", request.as_bytes())?;
        anyhow::ensure!(answer == "errno=0\n\n", "the control socket answered {answer:?}");
        Ok(())
    }
}

/// Makes an interface by this command.
pub(crate) fn start(space: &Space, command: &str, interface: &str) -> anyhow::Result<Child> {
    let mut words = command.split_whitespace();
    let mut program = Command::new(words.next().context("the command is empty")?);
    program.args(words).arg(interface).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = space.spawn(&mut program)?;
    let shown = format!("wg show {interface}");
    until(PATIENCE, &format!("`{command} {interface}` to make the interface"), || space.run(&shown).ok())?;
    Ok(child)
}

/// Makes a private key, writes it to a file on a machine, and returns the public key.
pub(crate) fn new_key(space: &Space) -> anyhow::Result<String> {
    let private = space.run("wg genkey")?;
    space.write("/run/key", &private)?;
    Ok(space.feed("wg pubkey", &private)?.trim().to_owned())
}

/// Where strangers reach a port of the measured machine.
pub(crate) fn from_outside(port: u16) -> SocketAddr {
    (MEASURED_BY_STRANGERS, port).into()
}

fn inner(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, number).into()
}

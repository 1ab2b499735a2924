//! Two machines, a cable between them, and a tunnel.
//!
//! ```text
//!   a   10.9.0.1 wg0 ── eth0 192.0.2.1 ──────── 192.0.2.2 eth0 ── wg0 10.9.0.2   b
//! ```

use std::{
    fmt,
    fs::File,
    io::{Read as _, Seek as _},
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use wireloom_lab::{Holder, PATIENCE, Space, until};

use crate::{
    contestant::Contestant,
    measuring::{End, RENO, Way},
    processes::Processes,
};

/// The offloads of the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Underlay {
    /// As the kernel makes it: it carries a super-packet of UDP as one.
    Plain,
    /// Like a network card without offloads: each packet crosses by itself.
    NoOffload,
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::NoOffload => "no-offload",
        })
    }
}

/// The port that WireGuard listens on, on both machines.
const PORT: u16 = 51820;

/// One of the two machines.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) space: Space,
    /// Where the other machine reaches it: through the tunnel, if there is one.
    pub(crate) address: IpAddr,
    /// The processes of the tunnel on this machine.
    pub(crate) tunnel: Processes,
    /// The contestant's process, and the processes that ran before it: some programs stay in the foreground, some go
    /// to the background.
    program: Option<(Child, Processes)>,
    holder: Holder,
}

/// Both machines. They go, with everything that runs on them, when this is dropped.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) a: Machine,
    pub(crate) b: Machine,
}

impl Ground {
    /// Makes the machines and the contestant's tunnel between them, and waits for a ping through it.
    pub(crate) fn new(underlay: Underlay, contestant: &Contestant) -> anyhow::Result<Self> {
        let mut a = Machine::new("a", 1)?;
        let mut b = Machine::new("b", 2)?;
        // `ip` looks up process ids as those of its own pid namespace.
        let cable = format!("ip link add eth0 type veth peer name eth0 netns {}", b.holder.pid());
        a.space.network_only().run(&cable)?;
        for (machine, number) in [(&a, 1), (&b, 2)] {
            machine.space.run(&format!("ip address add {}/24 dev eth0", outer(number)))?;
            if underlay == Underlay::NoOffload {
                machine.space.run("ethtool -K eth0 tx-udp-segmentation off gro off")?;
                machine.space.run("ip link set eth0 gso_max_segs 1")?;
            }
            machine.space.run("ip link set eth0 up")?;
        }
        if let Some(command) = &contestant.command {
            let keys = [a.key()?, b.key()?];
            a.start(command)?;
            b.start(command)?;
            a.join(1, &keys[1], 2)?;
            b.join(2, &keys[0], 1)?;
        }
        let first = format!("ping -q -c 1 -W 1 {}", b.address);
        until(PATIENCE, "the first ping", || a.space.run(&first).ok())?;
        a.find_processes()?;
        b.find_processes()?;
        Ok(Self { a, b })
    }

    /// The way of the loads.
    pub(crate) fn way(&self) -> Way<'_> {
        Way { from: self.a.end(), to: self.b.end() }
    }
}

impl Machine {
    fn new(name: &str, number: u8) -> anyhow::Result<Self> {
        let (holder, space) = Holder::new(name)?;
        space.set_sysctls(&[RENO])?;
        space.run("ip link set lo up")?;
        let tunnel = Processes::none(&space);
        Ok(Self { space, address: outer(number), tunnel, program: None, holder })
    }

    fn end(&self) -> End<'_> {
        End { space: &self.space, address: self.address }
    }

    /// Makes a private key, writes it to a file on the machine, and returns the public key.
    fn key(&self) -> anyhow::Result<String> {
        let private = self.space.run("wg genkey")?;
        self.space.write("/run/key", &private)?;
        Ok(self.space.feed("wg pubkey", &private)?.trim().to_owned())
    }

    /// Lets the contestant make the interface.
    fn start(&mut self, command: &str) -> anyhow::Result<()> {
        let before = Processes::all(&self.space)?;
        let mut said = tempfile::tempfile().context("cannot make a file for what a program says")?;
        let mut words = command.split_whitespace();
        let mut program = Command::new(words.next().context("the command is empty")?);
        program.args(words).arg("wg0").stdin(Stdio::null());
        program.stdout(duplicate(&said)?).stderr(duplicate(&said)?);
        let mut child = self.space.spawn(&mut program)?;
        let mut end = None;
        let there = until(PATIENCE, "an interface", || {
            end = child.try_wait().ok().flatten();
            let failed = end.is_some_and(|status| !status.success());
            (failed || self.space.run("wg show wg0").is_ok()).then_some(failed)
        });
        if !matches!(there, Ok(false)) {
            let mut text = String::new();
            said.rewind()?;
            said.read_to_string(&mut text)?;
            let end = end.map_or("makes no interface".to_owned(), |status| status.to_string());
            bail!("`{command} wg0`: {end}: {}", text.trim());
        }
        self.program = Some((child, before));
        Ok(())
    }

    /// Finds the processes of the tunnel, once it works: those that only started others have ended by then.
    fn find_processes(&mut self) -> anyhow::Result<()> {
        if let Some((child, before)) = &mut self.program {
            child.try_wait()?;
            self.tunnel = Processes::all(&self.space)?.without(before);
        }
        Ok(())
    }

    fn join(&mut self, number: u8, peer: &str, peers_number: u8) -> anyhow::Result<()> {
        self.space.run(&format!(
            "wg set wg0 private-key /run/key listen-port {PORT} \
             peer {peer} allowed-ips {}/32 endpoint {}:{PORT}",
            inner(peers_number),
            outer(peers_number)
        ))?;
        self.address = inner(number);
        self.space.run(&format!("ip address add {}/24 dev wg0", inner(number)))?;
        self.space.run("ip link set wg0 mtu 1420 up")?;
        Ok(())
    }
}

fn duplicate(file: &File) -> anyhow::Result<Stdio> {
    Ok(file.try_clone().context("cannot duplicate a descriptor")?.into())
}

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn inner(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, number).into()
}

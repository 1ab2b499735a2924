//! Joins the proofs into the agent's loop: looks at the device's handshakes, asks for more, and remembers.

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use wireloom_kernel::state::StateDir;
use wireloom_plan::{
    cluster::Cluster,
    desired::Owners,
    proofs::{Asking, Memory, OneSided, Preconditions, Proofs},
    standing::Standings,
    warning::Warning,
};
use wireloom_types::PublicKey;

use super::{Agent, log_error, seed};
use crate::run_file::unix_time;

/// How often the device is looked at while a node is to be proven or a proof is young.
const BUSY: Duration = Duration::from_secs(1);

/// How often otherwise. A node that was proven with another key may have been given a new one, for instance.
const IDLE: Duration = Duration::from_secs(5);

/// How often the counters of the guard are read, which lists the whole table: a few times before a refused packet
/// counts as old ([`RECENT`](wireloom_plan::proofs::RECENT)).
const COUNT: Duration = Duration::from_secs(10);

/// How many changes of one look are logged one by one.
const LOGGED: usize = 20;

/// The proofs and what has been done about them.
pub(super) struct Proving {
    proofs: Proofs,
    asking: Asking,
    preconditions: Preconditions,
    clock: Clock,
    /// What the state directory has.
    recorded: Memory,
    /// What the planner has.
    standings: Standings,
    /// When the device is to be looked at next.
    next_look: Instant,
    one_sided: OneSided,
    /// When the guard's counters are to be read next.
    next_count: Instant,
}

/// Seconds since 1970 on a clock that nobody sets while the agent runs. It goes on while the machine is suspended.
struct Clock {
    /// What is to be added to `CLOCK_BOOTTIME`.
    ahead: Duration,
}

impl Clock {
    fn start() -> io::Result<Self> {
        Ok(Self { ahead: Duration::from_secs(unix_time()).saturating_sub(boot_time()?) })
    }

    fn now(&self) -> Duration {
        boot_time().unwrap_or_default() + self.ahead
    }
}

fn boot_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

impl Proving {
    /// Starts from what an earlier agent recorded.
    pub(super) fn new(node: String, own_key: PublicKey, state: &StateDir) -> anyhow::Result<Self> {
        let recorded = state.proofs()?;
        Ok(Self {
            proofs: Proofs::new(node, own_key, recorded.clone()),
            asking: Asking::new(seed(own_key)),
            preconditions: Preconditions::default(),
            clock: Clock::start()?,
            recorded,
            standings: Standings::new(),
            next_look: Instant::now(),
            one_sided: OneSided::default(),
            next_count: Instant::now(),
        })
    }

    /// When the device is to be looked at next.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Seconds since 1970 on a clock that nobody sets while the agent runs.
    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// What the planner has.
    pub(super) fn standings(&self) -> &Standings {
        &self.standings
    }

    /// The mesh in force, without what nodes gave up lately.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.proofs.cluster()
    }

    /// Takes this node's name and key from changed settings.
    pub(super) fn set_identity(&mut self, node: &str, own_key: PublicKey) {
        self.proofs.set_identity(node, own_key, self.clock.now());
    }
}

impl Agent {
    /// Gives a mesh to the planner, with what proven nodes gave up lately and with where we stand with them.
    pub(super) fn set_cluster(&mut self, mesh: Cluster) {
        let now = self.proving.clock.now();
        let mut effective = self.proving.proofs.set_cluster(mesh, now);
        // An agent of a version without proofs may have left sessions: what they encrypt must not go direct meanwhile.
        if let (None, Some(handshakes)) = (self.last_pass, self.handshakes()) {
            effective = self.proving.proofs.look(&handshakes, now).unwrap_or(effective);
        }
        self.follow_proofs();
        self.reconciler.set_cluster(effective);
        self.proving.next_look = Instant::now();
    }

    /// Looks at the device if it is time to.
    pub(super) fn prove(&mut self) {
        if Instant::now() < self.proving.next_look || self.last_pass.is_none() {
            return;
        }
        self.proving.next_look = Instant::now() + BUSY;
        let Some(handshakes) = self.handshakes() else { return };
        let now = self.proving.clock.now();
        let effective = self.proving.proofs.look(&handshakes, now);
        let is_new = self.follow_proofs() | effective.is_some();
        effective.into_iter().for_each(|mesh| self.reconciler.set_cluster(mesh));
        if is_new {
            self.pass();
        }
        self.ask(now);
        self.look_for_plaintext(now);
        let Proving { proofs, preconditions, .. } = &self.proving;
        self.report.standing = proofs.accounts(preconditions);
        let busy = proofs.to_ask().next().is_some();
        let wait = if busy { BUSY } else { proofs.due(now).unwrap_or(IDLE).min(IDLE) };
        self.proving.next_look = Instant::now() + wait;
    }

    /// The keys with which the device has had a handshake; `None` if it cannot be read.
    fn handshakes(&mut self) -> Option<BTreeSet<PublicKey>> {
        match self.reconciler.kernel_mut().device() {
            Ok(device) => {
                device.iter().for_each(|device| self.listen_for_silence(device));
                self.probing.note_sessions(device.as_ref());
                let peers = device.into_iter().flat_map(|device| device.peers);
                Some(peers.filter(|(_, peer)| peer.last_handshake.is_some()).map(|(key, _)| key).collect())
            }
            Err(error) => {
                tracing::debug!("{error}");
                None
            }
        }
    }

    /// Asks peers that a handshake would prove for one, if this machine could deliver what they send.
    fn ask(&mut self, now: Duration) {
        let programmed = self.report.trouble.is_none();
        let Proving { proofs, asking, preconditions, .. } = &mut self.proving;
        let kernel = self.reconciler.kernel_mut();
        let asked = kernel.preconditions(programmed).and_then(|found| {
            *preconditions = found;
            if proofs.unmet(preconditions).is_some() {
                return Ok(());
            }
            let keys: Vec<_> = asking.choose(proofs.to_ask(), now).iter().map(|asked| asked.key).collect();
            if keys.is_empty() { Ok(()) } else { kernel.ask(&keys) }
        });
        if let Err(error) = asked {
            tracing::warn!("{error}");
        }
    }

    /// Reads what the guard has refused if that was long ago, and returns when it is read next.
    pub(super) fn count_plaintext(&mut self) -> Instant {
        if Instant::now() >= self.proving.next_count {
            self.proving.next_count = Instant::now() + COUNT;
            if let Err(error) = self.reconciler.kernel_mut().count_refused() {
                tracing::debug!("{error}");
            }
        }
        self.proving.next_count
    }

    /// Finds proven nodes that still send in plaintext, if it is time to.
    fn look_for_plaintext(&mut self, now: Duration) {
        let Proving { standings, one_sided, next_count, .. } = &mut self.proving;
        if standings.values().all(|standing| !standing.ingress) {
            self.report.not_proved_us.clear();
            return;
        }
        if Instant::now() < *next_count {
            return;
        }
        *next_count = Instant::now() + COUNT;
        let counters = match self.reconciler.kernel_mut().count_refused() {
            Ok(counters) => counters.unwrap_or_default(),
            Err(error) => return tracing::debug!("{error}"),
        };
        let Some(cluster) = self.reconciler.cluster() else { return };
        let refused = Owners::of(cluster, &self.config.settings).add_up(&counters.incoming);
        one_sided.note(refused, standings, now);
        let nodes = one_sided.nodes(now);
        let new = nodes.keys().filter(|name| !self.report.not_proved_us.contains_key(*name));
        let new: Vec<_> = new.cloned().collect();
        for node in new.iter().take(LOGGED) {
            tracing::warn!("{}", Warning::HasNotProvedUs { node: node.clone() });
        }
        if let Some(more @ 1..) = new.len().checked_sub(LOGGED) {
            tracing::warn!("and {more} more nodes have not proved us");
        }
        self.report.not_proved_us = nodes;
    }

    /// Records what has been proven, then gives it to the planner. Returns whether that is something new.
    fn follow_proofs(&mut self) -> bool {
        let Proving { proofs, recorded, standings, .. } = &mut self.proving;
        if proofs.memory() != recorded {
            match self.state.set_proofs(proofs.memory()) {
                Ok(()) => {
                    self.report.proofs_error = None;
                    recorded.clone_from(proofs.memory());
                }
                // It is tried again with the next look.
                Err(error) => {
                    let text = format!(
                        "cannot record in {} who has proved to encrypt: {error}",
                        self.state.path().display()
                    );
                    if self.report.proofs_error.is_none() {
                        self.report.proofs_error =
                            Some(log_error(&text, "a restart of this agent will not know of it"));
                    }
                }
            }
        }
        let new = proofs.standings();
        if new == *standings {
            return false;
        }
        log_changes(standings, &new);
        standings.clone_from(&new);
        self.reconciler.set_standings(new);
        true
    }
}

fn log_changes(old: &Standings, new: &Standings) {
    let holds =
        |standings: &Standings, name: &str| standings.get(name).is_some_and(|standing| standing.egress);
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changed: Vec<_> = names.into_iter().filter(|name| holds(old, name) != holds(new, name)).collect();
    for name in changed.iter().take(LOGGED) {
        match holds(new, name) {
            true => tracing::info!(
                "{name} is proven: traffic with its workloads is encrypted or refused from now on"
            ),
            false => tracing::warn!(
                "{name} is not proven any more: traffic with its workloads may be in plaintext"
            ),
        }
    }
    if let Some(more @ 1..) = changed.len().checked_sub(LOGGED) {
        tracing::info!("and {more} more nodes");
    }
}

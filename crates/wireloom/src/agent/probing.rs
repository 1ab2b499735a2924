//! Joins the paths into the agent's loop: notices what the kernel learns of them, and probes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use wireloom_kernel::{DeviceState, Echoes};
use wireloom_plan::paths::{Account, Prober, Target, targets};
use wireloom_types::PublicKey;

use super::Agent;

/// How often the kernel is asked whether it has learnt of another path.
const LOOK: Duration = Duration::from_secs(1);

/// Of how many peers at a time. One takes about 10 microseconds.
const LOOKS: usize = 200;

/// The least time between two turns of the prober. Replies wait in the socket meanwhile.
const TURN: Duration = Duration::from_millis(100);

/// What is known of the paths, and what is being found out.
pub(super) struct Probing {
    prober: Prober,
    echoes: Echoes,
    /// Whether the lack of a privilege was logged.
    refused: bool,
    /// The peers in a session.
    in_session: BTreeSet<PublicKey>,
    /// The peers that can be probed, as of the last look.
    targets: BTreeMap<PublicKey, Target>,
    started: Instant,
    next_look: Instant,
    next_turn: Instant,
    /// What the run file is about: how many passes there were, and how many results.
    reported: Option<(Option<Instant>, u64)>,
}

impl Probing {
    /// Starts from what an earlier agent found.
    pub(super) fn new(interface: &str, own_key: PublicKey, before: BTreeMap<PublicKey, u32>) -> Self {
        let seed = super::seed(own_key);
        let now = Instant::now();
        Self {
            prober: Prober::new(seed, before),
            echoes: Echoes::new(interface, seed as u16),
            refused: false,
            in_session: BTreeSet::new(),
            targets: BTreeMap::new(),
            started: now,
            next_look: now,
            next_turn: now,
            reported: None,
        }
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Instant {
        self.next_look.min(self.next_turn)
    }

    /// Takes which peers are in a session.
    pub(super) fn note_sessions(&mut self, device: Option<&DeviceState>) {
        let now = SystemTime::now();
        let peers = device.into_iter().flat_map(|device| &device.peers);
        let in_session = peers.filter(|(_, peer)| peer.is_in_session(now)).map(|(key, _)| *key).collect();
        if self.in_session != in_session {
            self.in_session = in_session;
            self.next_look = Instant::now();
        }
    }
}

impl Agent {
    /// Does what is due for the paths. Whatever changed is for the next pass.
    pub(super) fn probe(&mut self) {
        let now = Instant::now();
        if now >= self.probing.next_look {
            self.probing.next_look = now + LOOK;
            self.look_at_paths();
        }
        if now >= self.probing.next_turn {
            self.turn_prober(now);
        }
        self.report_paths();
    }

    /// Finds out who can be probed.
    fn take_targets(&mut self) {
        let (Some(observed), Some(cluster)) = (self.reconciler.mirror(), self.reconciler.cluster()) else {
            return;
        };
        let node = &self.config.settings.node;
        let in_session = &self.probing.in_session;
        let targets = targets(cluster, node, self.proving.standings(), observed, in_session);
        if targets != self.probing.targets {
            self.probing.targets = targets;
            self.probing.next_turn = Instant::now();
        }
    }

    /// Observes the kernel again if a path is another one than it was, and finds out who can be probed.
    fn look_at_paths(&mut self) {
        self.take_targets();
        let Some(observed) = self.reconciler.mirror() else { return };
        let peers = observed.device.iter().flat_map(|device| &device.peers);
        let with_endpoint: Vec<_> =
            peers.filter(|(_, peer)| peer.endpoint.is_some()).map(|(key, _)| *key).collect();
        match self.reconciler.kernel_mut().paths_have_changed(&with_endpoint, LOOKS) {
            Ok(false) => {}
            Ok(true) => self.observe_again(),
            Err(error) => tracing::debug!("{error}"),
        }
    }

    fn turn_prober(&mut self, now: Instant) {
        // A peer that vanished since the last look is asked nothing more.
        self.take_targets();
        let Probing { prober, echoes, targets, started, .. } = &mut self.probing;
        let since_start = now - *started;
        let before = prober.narrow();
        for (from, length) in echoes.replies() {
            prober.note_reply(from, length);
        }
        let to_send = prober.turn(targets, since_start);
        if let Err(error) = echoes.send(&to_send)
            && !std::mem::replace(&mut self.probing.refused, true)
        {
            tracing::warn!("cannot probe the paths to the peers: {error} (it takes CAP_NET_RAW)");
        }
        let Probing { prober, echoes, next_turn, .. } = &mut self.probing;
        let wait = prober.due(since_start).unwrap_or(Duration::MAX).max(TURN);
        if wait > LOOK {
            echoes.close();
        }
        *next_turn = now + wait.min(super::RESYNC);
        let narrow = prober.narrow();
        if narrow == before {
            return;
        }
        for (key, inner) in narrow.iter().filter(|(key, inner)| before.get(*key) != Some(*inner)) {
            let name = self.name_of(*key);
            tracing::warn!(
                "the path to {name} loses packets of more than {inner} bytes, and no router reports it: its routes get \
                 that MTU"
            );
        }
        for key in before.keys().filter(|key| !narrow.contains_key(*key)) {
            tracing::info!("the path to {} is not narrow any more", self.name_of(*key));
        }
        self.reconciler.kernel_mut().set_probed(narrow);
        self.observe_again();
    }

    fn observe_again(&mut self) {
        self.reconciler.distrust_kernel();
        self.due = Instant::now();
    }

    fn name_of(&self, key: PublicKey) -> String {
        let nodes = self.reconciler.cluster().into_iter().flat_map(|cluster| &cluster.nodes);
        let mut holders = nodes.filter(|(_, node)| node.public_key == Some(key));
        holders.next().map_or_else(|| key.to_string(), |(name, _)| name.clone())
    }

    /// Writes into the report what is known of the paths, if that may have changed.
    fn report_paths(&mut self) {
        let version = (self.last_pass, self.probing.prober.found());
        if self.probing.reported == Some(version) {
            return;
        }
        let (Some(observed), Some(cluster)) = (self.reconciler.mirror(), self.reconciler.cluster()) else {
            return;
        };
        let others = cluster.nodes.iter().filter(|(name, _)| **name != self.config.settings.node);
        let account = |key| {
            let path = observed.paths.get(key);
            let check = self.probing.prober.check(key);
            Account { mtu: path.map(|path| path.mtu), known: path.map(|path| path.known), check }
        };
        self.report.paths =
            others.filter_map(|(name, node)| Some((name.clone(), account(node.public_key?)))).collect();
        let probed = self.probing.prober.narrow();
        self.report.probed = probed.into_iter().map(|(key, inner)| (key.to_string(), inner)).collect();
        self.probing.reported = Some(version);
    }
}

//! Joins the endpoints by name into the agent's loop: a thread looks names up, and the mesh in force has the addresses.
//!
//! Which name is looked up next is decided in [`Names`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::mpsc::{Sender, SyncSender},
    time::{Duration, Instant, SystemTime},
};

use wireloom_kernel::DeviceState;
use wireloom_plan::{
    cluster::Cluster,
    endpoint_name::EndpointName,
    endpoints::Endpoints,
    names::{Heard, Names, Silence},
    warning::Warning,
};
use wireloom_types::PublicKey;

use super::{
    Agent,
    event::Event,
    resolver::{self, Found},
    seed,
};
use crate::run_file::Unresolved;

/// Answers that come within this time are put in force together: thousands of names must not cost thousands of passes.
const TOGETHER: Duration = Duration::from_millis(500);

/// How many changes are logged one by one.
const LOGGED: usize = 20;

/// The names and what is being done about them.
pub(super) struct Resolving {
    names: Names,
    endpoints: Endpoints,
    silence: Silence,
    /// The peers that do not answer, and where the device sends to.
    silent: BTreeMap<PublicKey, Option<SocketAddr>>,
    resolver: SyncSender<EndpointName>,
    /// Since when there are answers that are not in force yet.
    news: Option<Instant>,
    /// Another endpoint of a peer is to be tried.
    turns: bool,
}

impl Resolving {
    /// Starts the resolver's thread. `recorded` is the mesh that an earlier agent had in force.
    pub(super) fn start(
        own_key: PublicKey,
        recorded: Option<&Cluster>,
        events: Sender<Event>,
    ) -> io::Result<Self> {
        let resolver = resolver::start(move |found| events.send(Event::Resolved(found)).is_ok())?;
        Ok(Self {
            names: Names::new(seed(own_key), recorded),
            endpoints: Endpoints::default(),
            silence: Silence::default(),
            silent: BTreeMap::new(),
            resolver,
            news: None,
            turns: false,
        })
    }
}

impl Agent {
    /// Gives the endpoints of a mesh that are declared by name their addresses, as far as they are known. Of a peer's
    /// several endpoints, the one in use becomes the first.
    pub(super) fn resolve_endpoints(&mut self, mesh: &mut Cluster) {
        let Resolving { names, endpoints, .. } = &mut self.resolving;
        names.set_mesh(mesh, &self.config.settings.node);
        mesh.resolve(&names.addresses());
        endpoints.choose(mesh, &self.config.settings.node);
    }

    /// Asks the resolver for the name that is due, and puts its answers in force.
    pub(super) fn resolve(&mut self) {
        let now = self.started.elapsed();
        let Resolving { names, resolver, news, .. } = &mut self.resolving;
        if let Some(name) = names.next(now) {
            // There is room: one name is looked up at a time.
            let _ = resolver.try_send(name);
        }
        if news.is_some_and(|since| names.asked().is_none() || since.elapsed() >= TOGETHER) {
            *news = None;
            self.put_answers_in_force();
        }
        if std::mem::take(&mut self.resolving.turns)
            && let Some(mesh) = self.proving.cluster().cloned()
        {
            self.put_endpoints_in_force(mesh);
        }
    }

    /// Has all names looked up again.
    pub(super) fn ask_for_names_again(&mut self) {
        self.resolving.names.ask_again();
    }

    /// When [`Self::resolve`] has something to do; `None` while it waits for the resolver alone.
    pub(super) fn resolves_at(&self) -> Option<Instant> {
        let due = self.resolving.names.due().map(|due| self.started + due);
        let together = self.resolving.news.map(|since| since + TOGETHER);
        due.into_iter().chain(together).min()
    }

    /// Takes the resolver's answer.
    pub(super) fn take_answer(&mut self, found: Found) {
        let now = self.started.elapsed();
        let Resolving { names, silent, news, .. } = &mut self.resolving;
        let asked = names.asked().cloned();
        let changed = names.answer(found, now);
        news.get_or_insert_with(Instant::now);
        let Some(name) = asked.filter(|_| !changed) else { return };
        // A silent peer may have come back to its address, while the device still sends to one that it had meanwhile.
        let address = names.address(&name);
        let nodes = self.proving.cluster().into_iter().flat_map(|mesh| mesh.nodes.values());
        let keys = nodes
            .filter(|node| node.endpoint_name.as_ref() == Some(&name))
            .filter_map(|node| node.public_key);
        let astray = |key: &PublicKey| address.is_some() && silent.get(key).is_some_and(|at| *at != address);
        for key in keys.filter(astray).collect::<Vec<_>>() {
            self.reconciler.kernel_mut().forget_endpoint(key);
            self.reconciler.distrust_kernel();
            self.due = Instant::now();
        }
    }

    /// Finds the peers by name, and those with several endpoints, that do not answer.
    pub(super) fn listen_for_silence(&mut self, device: &DeviceState) {
        if self.resolving.names.is_empty() && self.resolving.endpoints.is_empty() {
            return;
        }
        let now = SystemTime::now();
        let peers = device
            .peers
            .iter()
            .map(|(key, peer)| (*key, Heard { handshake_age: peer.handshake_age(now), sent: peer.sent }));
        let peers: BTreeMap<PublicKey, Heard> = peers.collect();
        let Resolving { names, endpoints, silence, silent, turns, .. } = &mut self.resolving;
        let endpoint = |key| device.peers.get(&key).and_then(|peer| peer.endpoint);
        let do_not_answer = silence.look(peers.iter().map(|(key, heard)| (*key, *heard)));
        if let Some(mesh) = self.proving.cluster() {
            *turns |= endpoints.look(mesh, &peers, &do_not_answer, self.started.elapsed());
        }
        *silent = do_not_answer.into_iter().map(|key| (key, endpoint(key))).collect();
        let nodes = self.proving.cluster().into_iter().flat_map(|mesh| mesh.nodes.values());
        let is_silent = |key: PublicKey| silent.contains_key(&key);
        let of_silent = nodes.filter(|node| node.public_key.is_some_and(is_silent));
        names.set_silent(&of_silent.filter_map(|node| node.endpoint_name.clone()).collect());
    }

    fn put_answers_in_force(&mut self) {
        let addresses = self.resolving.names.addresses();
        let Some(mesh) = self.proving.cluster() else { return };
        let moved = mesh.nodes.iter().filter_map(|(node, record)| {
            let name = record.endpoint_name.as_ref()?;
            let address = addresses.get(name).filter(|address| record.endpoint != Some(**address))?;
            Some(format!("the endpoint {name} of node {node} is {address}"))
        });
        let moved: Vec<_> = moved.collect();
        moved.iter().take(LOGGED).for_each(|text| tracing::info!("{text}"));
        if let Some(more @ 1..) = moved.len().checked_sub(LOGGED) {
            tracing::info!("and the addresses of {more} more endpoints");
        }
        if !moved.is_empty() {
            let mesh = mesh.clone();
            self.put_addresses_in_force(mesh);
        }
        self.report_unresolved();
    }

    /// Reports the names whose last lookup failed, in the log only those that are new.
    fn report_unresolved(&mut self) {
        let warnings = self.resolving.names.warnings();
        let before: BTreeSet<_> =
            self.report.unresolved.iter().map(|(node, it)| it.warning(node.clone())).collect();
        let new: Vec<_> = warnings.difference(&before).collect();
        new.iter().take(LOGGED).for_each(|warning| tracing::warn!("{warning}"));
        if let Some(more @ 1..) = new.len().checked_sub(LOGGED) {
            tracing::warn!("and {more} more endpoints cannot be resolved");
        }
        let unresolved = warnings.into_iter().filter_map(|warning| match warning {
            Warning::Unresolved { node, endpoint, error } => Some((node, Unresolved { endpoint, error })),
            _ => None,
        });
        self.report.unresolved = unresolved.collect();
    }
}

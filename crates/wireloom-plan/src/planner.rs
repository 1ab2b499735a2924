//! The planner that an agent keeps. It holds the desired state and updates it change by change, so that the
//! cost of one changed node does not depend on the size of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use ipnet::IpNet;
use wireloom_types::{PresharedKeyHash, PublicKey};

use crate::{
    cluster::{Cluster, Node},
    desired::{Desired, Host, Index, View},
    diff::{diff, diff_guard, diff_touched},
    observed::Observed,
    op::Op,
    ownership,
    refusal::Refusal,
    settings::Settings,
    standing::{Standing, Standings},
    touched::Touched,
    tunnel_only,
    warning::Warning,
};

/// The operations to carry out, and what the operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order; empty when the kernel is as desired.
    pub ops: Vec<Op>,
    /// Not sorted by severity: see [`Warning::severity`].
    pub warnings: BTreeSet<Warning>,
}

/// Holds the cluster and the desired state that follows from it.
///
/// Feed it with [`set_cluster`](Self::set_cluster) (snapshots), [`set_node`](Self::set_node) and
/// [`remove_node`](Self::remove_node) (deltas), [`set_standings`](Self::set_standings) and
/// [`set_settings`](Self::set_settings), in any order. Then ask for [`plan`](Self::plan) after observing the kernel, or
/// for [`changes`](Self::changes) when only the cluster changed.
#[derive(Debug, Clone)]
pub struct Planner {
    inputs: Inputs,
    public_key: PublicKey,
    preshared_key: Option<PresharedKeyHash>,
    /// Absent when the next plan must derive it from scratch.
    derived: Option<Derived>,
    pending: Pending,
    /// Whether something of ours was ever seen in our table: from then on it is ours, even if everything in it is
    /// deleted.
    holds_table: bool,
}

/// What the desired state follows from besides the machine.
#[derive(Debug, Clone)]
struct Inputs {
    settings: Settings,
    cluster: Cluster,
    standings: Standings,
}

impl Inputs {
    fn view<'a>(&'a self, host: &'a Host, index: &'a Index) -> Result<View<'a>, Refusal> {
        View::new(&self.cluster, &self.settings, &self.standings, host, index)
    }
}

/// What the next call of [`Planner::changes`] must compare.
#[derive(Debug, Clone)]
enum Pending {
    Everything,
    Touched(Touched),
}

/// The desired state, and what it is derived from besides the cluster and the settings.
#[derive(Debug, Clone)]
struct Derived {
    host: Host,
    index: Index,
    desired: Desired,
}

impl Planner {
    /// Starts with a whole snapshot of the membership. `public_key` belongs to the key file's private key.
    pub fn new(settings: Settings, public_key: PublicKey, cluster: Cluster) -> Self {
        Self {
            inputs: Inputs { settings, cluster, standings: Standings::new() },
            public_key,
            preshared_key: None,
            derived: None,
            pending: Pending::Everything,
            holds_table: false,
        }
    }

    /// Replaces the settings; the next plan compares everything.
    pub fn set_settings(&mut self, settings: Settings) {
        if self.inputs.settings != settings {
            self.holds_table &= settings.table == self.inputs.settings.table;
            self.inputs.settings = settings;
            self.derived = None;
        }
    }

    /// Sets the hash of the preshared key in the file that the cluster names; `None` when this node has none. The
    /// planner ignores it if the cluster names no file.
    pub fn set_preshared_key(&mut self, key: Option<PresharedKeyHash>) {
        self.preshared_key = key;
    }

    /// Replaces the whole cluster. Only nodes that differ cost more than a comparison.
    pub fn set_cluster(&mut self, cluster: Cluster) {
        let old = &self.inputs.cluster;
        if self.derived.is_none()
            || (&old.pools, &old.preshared_key_file) != (&cluster.pools, &cluster.preshared_key_file)
        {
            self.inputs.cluster = cluster;
            self.derived = None;
            return;
        }
        let gone: Vec<_> = self
            .inputs
            .cluster
            .nodes
            .keys()
            .filter(|name| !cluster.nodes.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            self.update(&name, None);
        }
        for (name, node) in cluster.nodes {
            if self.inputs.cluster.nodes.get(&name) != Some(&node) {
                self.update(&name, Some(node));
            }
        }
    }

    /// Adds or changes one node.
    pub fn set_node(&mut self, name: &str, node: Node) {
        if self.inputs.cluster.nodes.get(name) != Some(&node) {
            self.update(name, Some(node));
        }
    }

    /// Removes one node.
    pub fn remove_node(&mut self, name: &str) {
        if self.inputs.cluster.nodes.contains_key(name) {
            self.update(name, None);
        }
    }

    /// Replaces where this node stands with the others. Only nodes whose standing differs cost more than a comparison.
    pub fn set_standings(&mut self, mut standings: Standings) {
        if self.derived.is_none() {
            self.inputs.standings = standings;
            return;
        }
        let gone = self.inputs.standings.keys().filter(|name| !standings.contains_key(*name));
        let changed = standings.iter().filter(|(name, new)| self.inputs.standings.get(*name) != Some(*new));
        let changed: Vec<_> = gone.chain(changed.map(|(name, _)| name)).cloned().collect();
        for name in changed {
            let node = self.inputs.cluster.nodes.get(&name).cloned();
            let standing = standings.remove(&name);
            self.change(&name, node, standing);
        }
    }

    /// The cluster as of the last change.
    pub fn cluster(&self) -> &Cluster {
        &self.inputs.cluster
    }

    /// This node's settings.
    pub fn settings(&self) -> &Settings {
        &self.inputs.settings
    }

    /// Plans everything that leads from the observed kernel to the desired one.
    ///
    /// # Errors
    /// [`Refusal`]: nothing may be changed.
    pub fn plan(&mut self, observed: &Observed) -> Result<Plan, Refusal> {
        self.refuse_unknown_key()?;
        self.refuse_foreign_table(observed)?;
        let settings = self.inputs.settings.clone();
        let tunnel_only = tunnel_only::warnings(
            &observed.connections,
            &self.inputs.cluster,
            &settings,
            &self.inputs.standings,
        );
        let (desired, pending) = self.derive(observed)?;
        let ops = diff(observed, desired)?;
        let of_others = ownership::warnings(observed, desired, &settings);
        let bypasses = observed.bypasses.iter().filter(|bypass| bypass.matters(&settings));
        let bypasses = bypasses.map(|bypass| Warning::Bypass { bypass: bypass.clone() });
        let linkdown = observed.linkdown_ignored.clone();
        let linkdown = (!linkdown.is_empty()).then_some(Warning::LinkdownIgnored { sysctls: linkdown });
        let own = desired.warnings.iter().cloned();
        let warnings = own.chain(of_others).chain(bypasses).chain(linkdown).chain(tunnel_only).collect();
        *pending = Pending::none();
        Ok(Plan { ops, warnings })
    }

    /// Plans what changes of the cluster since the last plan require, for a kernel in which that plan was
    /// carried out. If that failed, call [`plan`](Self::plan) instead.
    ///
    /// # Errors
    /// [`Refusal`]: nothing may be changed.
    pub fn changes(&mut self, observed: &Observed) -> Result<Vec<Op>, Refusal> {
        self.refuse_unknown_key()?;
        self.refuse_foreign_table(observed)?;
        let (desired, pending) = self.derive(observed)?;
        let ops = match pending {
            Pending::Everything => diff(observed, desired)?,
            Pending::Touched(touched) => diff_touched(observed, desired, touched)?,
        };
        *pending = Pending::none();
        Ok(ops)
    }

    /// The desired state, for the observed machine.
    ///
    /// # Errors
    /// [`Refusal`]: nothing may be changed.
    pub fn desired(&mut self, observed: &Observed) -> Result<&Desired, Refusal> {
        Ok(self.derive(observed)?.0)
    }

    /// Plans the guard alone, for when there is no plan: what should be encrypted must not leave in plaintext because
    /// our table or our interface belongs to somebody else.
    ///
    /// # Errors
    /// [`Refusal`]: this node is not in the cluster.
    pub fn plan_guard(&mut self, observed: &Observed) -> Result<Vec<Op>, Refusal> {
        let desired = self.derive(observed)?.0;
        Ok(diff_guard(observed, desired))
    }

    fn refuse_unknown_key(&self) -> Result<(), Refusal> {
        match (&self.inputs.cluster.preshared_key_file, self.preshared_key) {
            (Some(path), None) => Err(Refusal::NoPresharedKey { path: path.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether the table is ours is judged while nothing of ours is there. The refusal is about rules and routes: what
    /// refuses plaintext must not depend on it.
    fn refuse_foreign_table(&mut self, observed: &Observed) -> Result<(), Refusal> {
        self.holds_table = self.holds_table || ownership::holds_table(observed);
        if self.holds_table {
            Ok(())
        } else {
            ownership::refuse_foreign_table(observed, &self.inputs.settings)
        }
    }

    fn derive(&mut self, observed: &Observed) -> Result<(&Desired, &mut Pending), Refusal> {
        let preshared_key = self.preshared_key.filter(|_| self.inputs.cluster.preshared_key_file.is_some());
        let host = Host { preshared_key, ..Host::of(self.public_key, observed) };
        let derived = match self.derived.take() {
            Some(derived) if derived.host == host => derived,
            _ => {
                self.pending = Pending::Everything;
                Derived::from_scratch(&self.inputs, host)?
            }
        };
        Ok((&self.derived.insert(derived).desired, &mut self.pending))
    }

    /// Changes a node's entry in the cluster.
    fn update(&mut self, name: &str, new: Option<Node>) {
        let standing = self.inputs.standings.get(name).copied();
        self.change(name, new, standing);
    }

    /// Changes what is known of one node. Its entry in the cluster is `new` afterwards, its standing `standing`.
    fn change(&mut self, name: &str, new: Option<Node>, standing: Option<Standing>) {
        // Everything depends on this node's own entry.
        let mut derived = self.derived.take().filter(|_| name != self.inputs.settings.node);
        let before = derived.as_mut().and_then(|derived| {
            let old = self.inputs.cluster.nodes.get(name);
            derived.retract(&self.inputs, name, [old, new.as_ref()])
        });

        let inputs = &mut self.inputs;
        let old = inputs.cluster.nodes.remove(name);
        if let Some(derived) = &mut derived {
            derived.index.replace(name, [old.as_ref(), new.as_ref()], &inputs.settings);
        }
        put(&mut inputs.cluster.nodes, name.to_owned(), new);
        put(&mut inputs.standings, name.to_owned(), standing);

        if let (Some(mut derived), Some(before)) = (derived, before) {
            let nodes = [old.as_ref(), self.inputs.cluster.nodes.get(name)];
            if derived.derive_touched(&self.inputs, name, nodes, before, &mut self.pending) {
                self.derived = Some(derived);
            }
        }
    }
}

impl Pending {
    fn none() -> Self {
        Self::Touched(Touched::default())
    }
}

/// What must be known from before a change.
struct Before {
    touched: Touched,
    /// See [`View::changes_for_all`].
    changes_for_all: bool,
    can_encrypt: bool,
}

impl Derived {
    fn from_scratch(inputs: &Inputs, host: Host) -> Result<Self, Refusal> {
        let index = Index::of(&inputs.cluster, &inputs.settings, &host);
        let desired = inputs.view(&host, &index)?.desired();
        Ok(Self { host, index, desired })
    }

    /// Before another node changes: removes the warnings and the elements of the firewall that depend on it.
    fn retract(&mut self, inputs: &Inputs, name: &str, [old, new]: [Option<&Node>; 2]) -> Option<Before> {
        let view = inputs.view(&self.host, &self.index).ok()?;
        for warning in view.warnings_about(name, [old, new]) {
            self.desired.warnings.remove(&warning);
        }
        let mut touched = view.reach(old);
        touched.extend(view.reach(new));
        (touched.judged_peers, touched.sources) = view.sources_of(&touched);
        touched.guarded = view.guarded_of(&touched);
        let changes_for_all = view.changes_for_all([old, new]);
        if changes_for_all {
            touched.guarded.extend(view.guarded_of_all());
        }
        for peer in &touched.judged_peers {
            self.desired.judged_peers.remove(peer);
        }
        for source in &touched.sources {
            self.desired.sources.remove(source);
        }
        for guarded in &touched.guarded {
            self.desired.guarded.remove(guarded);
        }
        Some(Before { touched, changes_for_all, can_encrypt: view.can_encrypt() })
    }

    /// After the change: derives again what it touched. False when it touched everything.
    fn derive_touched(
        &mut self,
        inputs: &Inputs,
        name: &str,
        nodes: [Option<&Node>; 2],
        before: Before,
        pending: &mut Pending,
    ) -> bool {
        let Ok(view) = inputs.view(&self.host, &self.index) else { return false };
        if view.can_encrypt() != before.can_encrypt || view.mtu() != self.desired.mtu {
            return false;
        }
        let Before { mut touched, changes_for_all, .. } = before;
        touched.extend(view.reach(nodes[1]));

        let desired = &mut self.desired;
        for destination in &touched.destinations {
            put(&mut desired.routes, *destination, view.route(*destination));
        }
        for address in &touched.neighbours {
            put(&mut desired.neighbours, *address, view.neighbour(*address));
        }
        for key in &touched.peers {
            put(&mut desired.peers, *key, view.peer(*key));
        }
        let (peers, sources) = view.sources_of(&touched);
        desired.judged_peers.extend(&peers);
        desired.sources.extend(&sources);
        touched.judged_peers.extend(peers);
        touched.sources.extend(sources);
        let mut guarded = view.guarded_of(&touched);
        if changes_for_all {
            guarded.extend(view.guarded_of_all());
        }
        desired.guarded.extend(&guarded);
        touched.guarded.extend(guarded);
        desired.warnings.extend(view.warnings_about(name, nodes));

        // It may have been the first or the last node with a prefix of a family.
        let rules = mem::replace(&mut desired.rules, view.rules());
        match pending {
            Pending::Touched(pending) if rules == desired.rules => pending.extend(touched),
            _ => *pending = Pending::Everything,
        }
        true
    }
}

impl View<'_> {
    /// The peers, destinations and neighbours that depend on a node: its own, those of the nodes that claim
    /// its key, and the peers that claim its prefixes.
    fn reach(&self, node: Option<&Node>) -> Touched {
        let mut reach = Touched::default();
        let Some(node) = node else { return reach };
        let sharers = node.public_key.into_iter().flat_map(|key| self.sharers(key));
        for node in sharers.chain([node]) {
            reach.peers.extend(node.public_key);
            reach.neighbours.extend(self.addresses_on_link(node));
            for claim in self.claimed(node) {
                reach.destinations.insert(claim);
                // A rival that gets or loses an address on the link may need another next hop.
                let on_the_link = |rival: &&Node| {
                    claim == IpNet::from(claim.addr()) && rival.link_addresses.contains(&claim.addr())
                };
                for rival in self.claimants(claim).filter(on_the_link) {
                    reach.neighbours.insert(claim.addr());
                    reach.destinations.extend(self.claimed(rival));
                }
            }
        }
        for destination in &reach.destinations {
            reach.peers.extend(self.claimants(*destination).filter_map(|claimant| claimant.public_key));
        }
        reach
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

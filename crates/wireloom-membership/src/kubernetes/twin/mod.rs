//! The twin of the API server: one in this process, with faults to order.
//!
//! It has what clients depend on: one version for all kinds that grows with every write, lists in pages of one version,
//! watches with bookmarks, `410 Gone` for versions that it no longer keeps, conflicts, and `Status` objects for what it
//! refuses. A watch from a version that it has not reached is silent, as the real one's is.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

mod answers;
mod objects;

pub(crate) use self::objects::Objects;

pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const RECORDS: &str = "/apis/wireloom.io/v1alpha1/wireloomnodes";
pub(crate) const STATUSES: &str = "/apis/wireloom.io/v1alpha1/wireloomnodestatuses";
pub(crate) const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// A twin that serves as long as it lives.
pub(crate) struct Twin {
    shared: Arc<Shared>,
    /// Holds the kubeconfig and the token.
    directory: tempfile::TempDir,
}

/// What is wrong with the server.
#[derive(Debug, Clone, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// It refuses everything with this code, and asks to be left alone for some seconds.
    Refuses { code: u16, retry_after: Option<u64> },
    /// A server behind it that serves what is below this path is down.
    LacksBackend(&'static str),
    /// It takes requests, and never answers.
    Hangs,
    /// It takes so long for each answer.
    Slow(Duration),
    /// It answers something else.
    Babbles,
}

struct Shared {
    state: Mutex<State>,
    /// Sent whenever something in the state has changed.
    ticks: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    /// The collections that there are, by their paths.
    kinds: BTreeSet<String>,
    fault: Fault,
    /// The only token that is taken.
    token: String,
    /// Watches of an older generation have been cut.
    generation: u64,
    /// How many watches have been opened.
    watches: u64,
    /// So many of the first watches say nothing any more, not even that they end.
    muted: u64,
    /// Bookmarks that have been ordered.
    bookmarks: u64,
    /// The requests so far, such as "GET /api/v1/nodes?limit=500".
    requests: Vec<String>,
}

impl Twin {
    /// A twin without a socket: requests reach it by its [`Twin::door`], and take no time that it was not told to take.
    pub(crate) fn start() -> Self {
        let state = State {
            objects: Objects::new(1000),
            kinds: [NODES, RECORDS, STATUSES, EVENTS].map(str::to_owned).into(),
            ..State::default()
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), ticks: watch::Sender::new(0) });
        let twin = Self { shared, directory: tempfile::tempdir().unwrap() };
        twin.rotate_token("first");
        twin
    }

    /// A twin that a thread of its own serves on a socket, until the process ends. [`Twin::kubeconfig`] leads there.
    pub(crate) fn on_a_thread() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let twin = Self::start();
        twin.write_kubeconfig(listener.local_addr().unwrap());
        let shared = Arc::clone(&twin.shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                answers::serve(TcpListener::from_std(listener).unwrap(), shared).await;
            });
        });
        twin
    }

    /// The way in without a socket.
    pub(crate) fn door(&self) -> Door {
        Door { shared: Arc::clone(&self.shared), token: self.directory.path().join("token") }
    }

    fn write_kubeconfig(&self, address: SocketAddr) {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "twin",
            "contexts": [{"name": "twin", "context": {"cluster": "twin", "user": "agent"}}],
            "clusters": [{"name": "twin", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "agent", "user": {"tokenFile": self.directory.path().join("token")}}],
        });
        // JSON is YAML.
        std::fs::write(self.kubeconfig(), kubeconfig.to_string()).unwrap();
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Another token is taken from now on; it is in the file that the kubeconfig names.
    pub(crate) fn rotate_token(&self, token: &str) {
        std::fs::write(self.directory.path().join("token"), token).unwrap();
        self.change(|state| state.token = token.to_owned());
    }

    /// Serves a further collection.
    pub(crate) fn add_kind(&self, path: &str) {
        self.change(|state| state.kinds.insert(path.to_owned()));
    }

    /// Takes a collection away, as if its CRD were not there.
    pub(crate) fn remove_kind(&self, path: &str) {
        self.change(|state| state.kinds.remove(path));
    }

    /// Makes an object, or changes it; whoever it is that does it.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.change(|state| state.objects.put(path, object));
    }

    pub(crate) fn remove(&self, path: &str, name: &str) {
        self.change(|state| state.objects.remove(path, name));
    }

    pub(crate) fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(path, name).cloned()
    }

    pub(crate) fn all(&self, path: &str) -> BTreeMap<String, Value> {
        self.lock().objects.all(path).map(|(name, object)| (name.clone(), object.clone())).collect()
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        self.change(|state| state.fault = fault);
    }

    /// Ends all watches.
    pub(crate) fn cut_watches(&self) {
        self.change(|state| state.generation += 1);
    }

    /// The watches that are open say nothing any more, as after their connections broke without a word.
    pub(crate) fn mute_watches(&self) {
        self.change(|state| state.muted = state.watches);
    }

    /// Says to all watches that nothing has changed.
    pub(crate) fn bookmark(&self) {
        self.change(|state| state.bookmarks += 1);
    }

    /// Forgets how it came to be as it is: watches from a version before this one are refused.
    pub(crate) fn compact(&self) {
        self.change(|state| state.objects.compact());
    }

    /// What etcd would be restored from.
    pub(crate) fn backup(&self) -> Objects {
        self.lock().objects.clone()
    }

    /// Goes back to a backup, as an API server that was restarted with it.
    pub(crate) fn restore(&self, backup: Objects) {
        self.change(|state| {
            state.objects = backup;
            state.generation += 1;
        });
    }

    /// The requests since this was called last.
    pub(crate) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.shared.change(change)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

/// A way to a twin that needs no socket: in virtual time, the clock jumps while data is on its way through one.
#[derive(Clone)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    token: PathBuf,
}

impl Door {
    /// A client with the token that the file has now.
    pub(crate) fn client(&self) -> Client {
        let shared = Arc::clone(&self.shared);
        let token = std::fs::read_to_string(&self.token).unwrap();
        let service = tower::service_fn(move |mut request: hyper::Request<Body>| {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert(hyper::header::AUTHORIZATION, value);
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(answers::answer(&shared, request).await) }
        });
        Client::new(service, "default")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.ticks.send_modify(|ticks| *ticks += 1);
        result
    }
}

/// A Node as the cluster makes it.
pub(crate) fn node(name: &str, pod_cidrs: &[&str], internal_ips: &[&str]) -> Value {
    let addresses: Vec<Value> =
        internal_ips.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
        "status": {"addresses": addresses, "images": [{"names": ["example.com/large:1"]}]},
    })
}

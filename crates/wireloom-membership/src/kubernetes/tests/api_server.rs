//! A real API server with an etcd of its own, in a network namespace.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use wireloom_lab::{Space, until};

use super::super::{
    Settings, Workloads,
    credentials::Credentials,
    own_node::{OwnNodeHandler, Owner},
    own_record::OwnWireloomNode,
    server::{ApiServer, Call},
    twin::{NODES, node},
};
use super::own_record::knowledge;
use crate::{
    Source,
    calico::Own,
    etcd::tests::fixtures::{
        authority::Authority,
        cluster::{Edition, Etcd},
    },
    knowledge::Handler as _,
    store::Object,
};

/// Where it listens on the namespace's loopback interface.
pub(super) const PORT: u16 = 6443;

/// The administrator's token.
const TOKEN: &str = "administrator";

/// What the server notes: every request once, when it answers.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}]}"#;

/// How long it may take until it is ready: it reads a hundred megabytes of program first.
const READY: Duration = Duration::from_secs(60);

/// A running API server that knows our kinds. Dropping it ends it.
pub(super) struct RealServer {
    process: Child,
    etcd: Etcd,
    directory: PathBuf,
    kubectl: PathBuf,
}

impl RealServer {
    /// Starts it, and waits until it has our kinds.
    pub(super) fn start() -> Self {
        let programs = programs();
        let etcd = Etcd::start(Edition::Modern, 1);
        let directory = etcd.directory.path().join("api-server");
        let authority = Authority::new(&directory);
        let (server, tokens) = (authority.identify("127.0.0.1"), authority.identify("tokens"));
        let users = directory.join("users.csv");
        fs::write(&users, format!("{TOKEN},administrator,administrator,system:masters\n")).unwrap();
        let policy = directory.join("audit.yaml");
        fs::write(&policy, AUDIT).unwrap();
        // No reconciler: it would refuse to name a loopback address as the endpoint of the server's Service.
        let arguments = format!(
            "--etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --advertise-address=127.0.0.1 \
             --endpoint-reconciler-type=none --secure-port={PORT} --tls-cert-file={} --tls-private-key-file={} \
             --token-auth-file={} --authorization-mode=RBAC --service-account-key-file={} \
             --service-account-signing-key-file={} --service-account-issuer=https://kubernetes.default.svc \
             --service-cluster-ip-range=10.96.0.0/16 \
             --audit-policy-file={} --audit-log-path={}",
            server.certificate.display(),
            server.key.display(),
            users.display(),
            tokens.certificate.display(),
            tokens.key.display(),
            policy.display(),
            directory.join("audit.log").display(),
        );
        let log = File::create(directory.join("log")).unwrap();
        let mut command = Command::new(programs.join("kube-apiserver"));
        command.args(arguments.split_whitespace());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = etcd.space.spawn(&mut command).unwrap();
        let server = Self { process, etcd, directory, kubectl: programs.join("kubectl") };
        let ready = until(READY, "the API server to be ready", || server.kubectl("get --raw /readyz").ok());
        ready.unwrap_or_else(|error| panic!("{error}; its log ends with\n{}", server.end_of_log()));
        let kinds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes/crds");
        server.kubectl(&format!("apply --kustomize {kinds}")).unwrap();
        server.kubectl("wait --for condition=established --timeout 30s crd --all").unwrap();
        server
    }

    pub(super) fn space(&self) -> &Space {
        &self.etcd.space
    }

    /// Runs kubectl as the administrator, with a command line that is split at white space.
    pub(super) fn kubectl(&self, line: &str) -> wireloom_lab::Result<String> {
        let (kubectl, directory) = (self.kubectl.display(), self.directory.display());
        let kubeconfig = self.kubeconfig(PORT);
        let kubeconfig = kubeconfig.display();
        let line = format!("{kubectl} --kubeconfig {kubeconfig} --cache-dir {directory}/cache {line}");
        self.etcd.space.run(&line)
    }

    /// An agent's source, which reaches the server at this port.
    pub(super) fn source(&self, port: u16) -> Source {
        let kubeconfig = Some(self.kubeconfig(port));
        let settings = Settings {
            kubeconfig,
            workloads: Workloads::Auto,
            pools: Default::default(),
            felix_peers: false,
        };
        Source::Kubernetes(Box::new(settings))
    }

    /// Our client of it.
    pub(super) fn client(&self) -> Arc<ApiServer> {
        Arc::new(ApiServer::new(Credentials::Kubeconfig(self.kubeconfig(PORT))))
    }

    /// How many requests of agents and our other clients the server has answered, by what was asked.
    pub(super) fn requests(&self) -> BTreeMap<String, u64> {
        let mut requests = BTreeMap::new();
        let log = fs::read_to_string(self.directory.join("audit.log")).unwrap();
        for line in log.lines() {
            // The last line may still be in the making.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            // A watch is answered when it starts, and noted again when it ends.
            let is_end_of_watch = text("/verb") == "watch" && text("/stage") == "ResponseComplete";
            if text("/userAgent").starts_with("wireloom/") && !is_end_of_watch {
                let path = text("/requestURI").split('?').next().unwrap_or_default();
                let request = format!("{} {path} ({})", text("/verb"), event["responseStatus"]["code"]);
                *requests.entry(request).or_default() += 1;
            }
        }
        requests
    }

    /// A kubeconfig of the administrator. JSON is YAML as well.
    fn kubeconfig(&self, port: u16) -> PathBuf {
        let path = self.directory.join(format!("kubeconfig-{port}"));
        let cluster = json!({
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": self.directory.join("ca.pem"),
        });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "it", "cluster": cluster }],
            "users": [{ "name": "it", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
            "current-context": "it",
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a Node, and the place of its record.
pub(super) async fn new_node(client: &Arc<ApiServer>, name: &str) -> OwnWireloomNode {
    let made = client.ask(NODES, Call::Create(&node(name, &[], &[])), "make a Node").await.unwrap();
    let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
    let owner = Owner::default();
    let objects = [(name.to_owned(), Object { value: "{}".into(), born: 0, uid })];
    OwnNodeHandler::new(name, owner.clone(), Own::new(Workloads::PodCidrs))
        .whole(objects.into(), &mut knowledge());
    OwnWireloomNode::new(Arc::clone(client), name, owner)
}

/// The directory of Kubernetes' programs. They are built if this is the first time.
fn programs() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/kubernetes-programs");
    let output = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "scripts/kubernetes-programs failed; its messages are above");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

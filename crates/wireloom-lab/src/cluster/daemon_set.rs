//! Wireloom on a cluster, as `deploy/kubernetes` installs it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::Cluster;
use crate::{
    Error, Node, PATIENCE, Result,
    mesh::{KeyPair, Mesh, write_key},
    network::layout::pools,
    until,
};

/// The namespace and the name of the DaemonSet, and the names of its pods' containers.
const DAEMON_SET: &str = "--namespace wireloom daemonset/wireloom";
const CONTAINER: &str = "agent";
const ENGINE: &str = "engine";
const INIT_CONTAINER: &str = "boot-guard";

/// The name under which `deploy/kubernetes` expects Wireloom's image.
const IMAGE: &str = "wireloom";

/// The image is the user's own; everything else is as `deploy/kubernetes` has it. `RESOURCE` is one of its directories.
const KUSTOMIZATION: &str = r#"resources: ["base/RESOURCE"]
images: [{name: wireloom, newName: "IMAGE", newTag: "TAG"}]
"#;

/// A file of the ConfigMap that is the user's own.
const OWN_FILE: &str = r#"configMapGenerator:
  - name: wireloom
    namespace: wireloom
    behavior: merge
    files: ["FILE"]
    options: {disableNameSuffixHash: true}
"#;

/// Wireloom on a cluster.
#[derive(Debug)]
pub struct DaemonSet {
    /// The user's directory, which `kubectl apply --kustomize` reads.
    directory: PathBuf,
}

impl DaemonSet {
    /// Installs Wireloom on every node, as `kubectl apply -k deploy/kubernetes` does, and waits until every agent is
    /// ready. `tag` is that of the image `wireloom`, which must be imported.
    ///
    /// # Errors
    /// When kubectl fails, or an agent is not ready in time.
    pub fn install(cluster: &Cluster, tag: &str) -> Result<Self> {
        let daemon_set = Self::prepare(cluster)?;
        daemon_set.choose("", tag)?;
        daemon_set.apply(cluster)?;
        Ok(daemon_set)
    }

    /// As [`DaemonSet::install`], but with a component of `deploy/kubernetes`.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn with_component(cluster: &Cluster, tag: &str, component: &str) -> Result<Self> {
        let daemon_set = Self::prepare(cluster)?;
        daemon_set.choose("", tag)?;
        daemon_set.add_component(component)?;
        daemon_set.apply(cluster)?;
        Ok(daemon_set)
    }

    /// As [`DaemonSet::install`], but with an `agent.toml` of the user's own, which says what addresses pods have.
    /// Without that a node encrypts what its own pods send, and not what it forwards for others' pods.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn with_pools(cluster: &Cluster, tag: &str) -> Result<Self> {
        let daemon_set = Self::prepare(cluster)?;
        daemon_set.choose("", tag)?;
        daemon_set.add_setting(&format!("pools = {:?}", pools().map(|pool| pool.to_string())))?;
        daemon_set.apply(cluster)?;
        Ok(daemon_set)
    }

    /// As [`DaemonSet::install`], but with the mesh from a file. `wireloom` is the program, which makes the nodes'
    /// keys.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn with_mesh_file(cluster: &Cluster, wireloom: &Path, tag: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for node in cluster.nodes() {
            let key = KeyPair::generate(wireloom, node)?;
            write_key(node, &key)?;
            keys.push(key);
        }
        let daemon_set = Self::prepare(cluster)?;
        daemon_set.choose("overlays/mesh-file", tag)?;
        daemon_set.replace_in_config_map("mesh.toml")?;
        let mut mesh = Mesh::of_nodes(cluster.nodes(), &keys);
        for (member, node) in mesh.nodes.iter_mut().zip(cluster.nodes()) {
            member.addresses.extend(cluster.layout.network.node_addresses(node));
        }
        daemon_set.write("mesh.toml", &mesh.to_toml())?;
        daemon_set.apply(cluster)?;
        Ok(daemon_set)
    }

    /// Makes the user's directory.
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let directory = cluster.directory().join("wireloom");
        copy_manifests(&directory.join("base"))?;
        Ok(Self { directory })
    }

    /// Writes a kustomization with this directory of `deploy/kubernetes`, and this tag of the image.
    fn choose(&self, resource: &str, tag: &str) -> Result<()> {
        let text = KUSTOMIZATION.replace("RESOURCE", resource).replace("IMAGE", IMAGE).replace("TAG", tag);
        self.write("kustomization.yaml", &text)
    }

    fn replace_in_config_map(&self, file: &str) -> Result<()> {
        let kustomization = self.read("kustomization.yaml")? + &OWN_FILE.replace("FILE", file);
        self.write("kustomization.yaml", &kustomization)
    }

    /// Replaces `agent.toml` by one of the user's own, with this line more in `[membership]`.
    fn add_setting(&self, line: &str) -> Result<()> {
        self.replace_in_config_map("agent.toml")?;
        let (settings, source) = (self.read("base/base/agent.toml")?, "source = \"kubernetes\"");
        self.write("agent.toml", &settings.replace(source, &format!("{source}\n{line}")))
    }

    /// Adds a component, which is in force with the next [`DaemonSet::apply`]. There can be one.
    fn add_component(&self, component: &str) -> Result<()> {
        let line = format!("components: [base/components/{component}]\n");
        let kustomization = self.read("kustomization.yaml")? + &line;
        self.write("kustomization.yaml", &kustomization)
    }

    /// Applies the user's directory, and waits until every agent is ready.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn apply(&self, cluster: &Cluster) -> Result<()> {
        cluster.kubectl(&format!("apply --kustomize {}", self.directory.display()))?;
        self.wait(cluster)
    }

    /// Keeps Wireloom from installing its boot unit on the nodes from now on, with the component that
    /// `deploy/kubernetes` has for that, and waits until every agent is ready. A unit that is there already stays.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn without_boot_guard(&self, cluster: &Cluster) -> Result<()> {
        self.add_component("without-boot-guard")?;
        self.apply(cluster)
    }

    /// Lets agents share keys with Calico's Felix, with the component that `deploy/kubernetes` has for that, once it is
    /// applied again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn share_with_felix(&self) -> Result<()> {
        self.add_component("felix-peers")?;
        self.add_setting("felix_peers = true")
    }

    /// Deletes the DaemonSet, and waits until its pods are gone.
    ///
    /// # Errors
    /// When kubectl fails, or a pod is still there after a minute.
    pub fn delete(&self, cluster: &Cluster) -> Result<()> {
        cluster.kubectl(&format!("delete {DAEMON_SET} --cascade=foreground --timeout 60s")).map(drop)
    }

    /// Begins to uninstall Wireloom as docs/kubernetes.md says: applies the overlay for that, and waits until every
    /// node has left the mesh.
    ///
    /// # Errors
    /// When kubectl fails, or a node is not done in time.
    pub fn take_off_nodes(&self, cluster: &Cluster, tag: &str) -> Result<()> {
        self.choose("overlays/uninstall", tag)?;
        cluster.kubectl(&format!("apply --kustomize {}", self.directory.display()))?;
        self.wait(cluster)
    }

    /// Ends it: deletes everything.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn uninstall(self, cluster: &Cluster) -> Result<()> {
        cluster.kubectl(&format!("delete --kustomize {} --timeout 60s", self.directory.display())).map(drop)
    }

    /// Removes Wireloom with the mesh from a file from every node, with the patch that `deploy/kubernetes` has for
    /// that. The DaemonSet stays.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn remove_from_nodes(&self, cluster: &Cluster) -> Result<()> {
        let patch = self.directory.join("base/overlays/mesh-file/remove.yaml");
        cluster.kubectl(&format!("patch {DAEMON_SET} --type json --patch-file {}", patch.display()))?;
        self.wait(cluster)
    }

    /// Rolls out another image, and waits until every node runs it.
    ///
    /// # Errors
    /// As [`DaemonSet::install`].
    pub fn roll_out(&self, cluster: &Cluster, tag: &str) -> Result<()> {
        let image = format!("{IMAGE}:{tag}");
        let containers = [INIT_CONTAINER, CONTAINER, ENGINE].map(|container| format!("{container}={image}"));
        cluster.kubectl(&format!("set image {DAEMON_SET} {}", containers.join(" ")))?;
        self.wait(cluster)
    }

    /// Waits until every node runs the agent, and every agent is ready.
    ///
    /// # Errors
    /// [`Error::Logged`], with the state of the pods and what the agents logged, when that takes more than 50 s.
    pub fn wait(&self, cluster: &Cluster) -> Result<()> {
        let status = cluster.kubectl(&format!("rollout status {DAEMON_SET} --timeout 50s"));
        status.map(drop).map_err(|error| {
            let questions = [
                "get pods --namespace wireloom --output wide",
                "get events --namespace wireloom",
                "logs --namespace wireloom --selector app.kubernetes.io/name=wireloom --prefix --tail 20",
            ];
            let answers =
                questions.map(|line| cluster.kubectl(line).unwrap_or_else(|error| error.to_string()));
            Error::Logged { what: error.to_string(), log: answers.join("\n") }
        })
    }

    /// Waits until every node has a proof of every other one: `standing` in `wireloom status --json`. Before that, a
    /// node's pods are reached in plaintext, unless the settings say otherwise.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_for_proofs(&self, cluster: &Cluster) -> Result<()> {
        cluster.members().try_for_each(|(n, node)| {
            until(2 * PATIENCE, &format!("every peer of {} to be proven", node.name), || {
                let status = self.status(cluster, n).ok()?;
                let is_proven = |(_, other): (usize, &Node)| {
                    other.name == node.name || status["standing"][&other.name].get("proven").is_some()
                };
                cluster.members().all(is_proven).then_some(())
            })
        })
    }

    /// The process id of the agent on a node (an index into [`Cluster::nodes`]), as the node sees it.
    ///
    /// # Errors
    /// When no agent runs there.
    pub fn agent(&self, cluster: &Cluster, node: usize) -> Result<u32> {
        let output = cluster.nodes()[node].run("pgrep --oldest --full wireloom.agent.--take-over$")?;
        let unexpected = || Error::Output { what: "pgrep".into(), output: output.clone() };
        output.trim().parse().map_err(|_| unexpected())
    }

    /// What `wireloom status --json` says on a node (an index into [`Cluster::nodes`]).
    ///
    /// # Errors
    /// When no agent's container runs there, or the command fails.
    pub fn status(&self, cluster: &Cluster, node: usize) -> Result<Value> {
        let node = &cluster.nodes()[node].name;
        let pods = cluster.kubectl(&format!(
            "get pods --namespace wireloom --field-selector spec.nodeName={node} --output name"
        ))?;
        let pod = pods.lines().next().unwrap_or("pod/none");
        let line =
            format!("exec --namespace wireloom --container {CONTAINER} {pod} -- wireloom status --json");
        // The exit status is not 0 where something is wrong, and the status comes all the same.
        let output = match cluster.kubectl(&line) {
            Err(Error::Command { stderr, .. }) => stderr,
            output => output?,
        };
        let first = serde_json::Deserializer::from_str(&output).into_iter().next();
        first.and_then(Result::ok).ok_or(Error::Output { what: "wireloom status --json".into(), output })
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.directory.join(file);
        fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))
    }
}

/// Copies `deploy/kubernetes` into a directory, which it makes: kustomize reads no directories by absolute paths.
///
/// # Errors
/// [`Error::Io`].
pub fn copy_manifests(to: &Path) -> Result<()> {
    let from: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../deploy/kubernetes"].iter().collect();
    copy_directory(&from, to).map_err(Error::io(format!("copy {}", from.display())))
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

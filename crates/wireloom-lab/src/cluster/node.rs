//! A node of the cluster: containerd, kubelet and kube-proxy on a machine of the laboratory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::{
    ProxyMode,
    boot::load_guard,
    certificates::Authority,
    control_plane::CONFIGURATION,
    layout::cluster_cidrs,
    process::{Program, explain},
};
use crate::{Error, Node, PATIENCE, Result, until};

/// The image of the containers that hold pods' networks. It must be imported; there is no registry.
pub(super) const SANDBOX_IMAGE: &str = "registry.local/pause:1";

/// Directories of a node that outlive its machine, as on a disk.
const ON_DISK: [&str; 6] = [
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/pod-logs",
    "/var/lib/wireloom",
    "/etc/systemd/system",
];

/// The network plugin's configuration, in a directory of its own: the kubelet's choice depends on all files there.
const NETWORK_DIRECTORY: &str = "/etc/wireloom-lab-cni";

/// Set on every node: bridges show their packets to the firewall, or a pod that calls a service and reaches a pod of
/// its own node would get answers from an address that it did not call.
const BRIDGE_NETFILTER: [(&str, &str); 2] =
    [("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];

/// Runs containerd and the kubelet (`$@`) in control groups of their own, named `$GROUP`, which are the roots of the
/// hierarchies in a control group namespace: several kubelets of one machine do not see each other.
///
/// - Pods in the node's own network see its host name, `$NAME`.
/// - The kubelet makes links to pods' logs in `/var/log/containers`, which are not for this machine's own `/var/log`.
/// - Pods see what is mounted for them later (secrets, say) because `/` is shared.
/// - A machine that is turned on again has no groups of containers. The kubelet would look into old ones for a minute.
/// - cpuset needs its processors before a process can enter (version 1, cpuset(7)).
/// - In version 2 only groups without processes can hand controllers to their children ("no internal processes",
///   cgroups(7)), so what runs here moves to a child.
const NODE: &str = r#"
set -e
mount --make-rshared /
[ -n "$ENTERED" ] || mount -t tmpfs tmpfs /var/log
hierarchies() {
    sed -nE 's/^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ ([^ ]+) .* - (cgroup2?) [^ ]+ (.*)$/\1 \2 \3/p' /proc/self/mountinfo
}
if [ -z "$ENTERED" ]; then
    hierarchies | while read -r at type options; do
        group=$at/$GROUP
        mkdir -p "$group"
        until find "$group" -mindepth 1 -depth -type d -exec rmdir {} +; do sleep 0.05; done
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$at/$file" ] || [ "$type" = cgroup2 ] || cat "$at/$file" >"$group/$file"
        done
        echo $$ >"$group/cgroup.procs"
    done
    ENTERED=yes exec unshare --cgroup --uts sh -c "$SCRIPT" sh "$@"
fi
echo "$NAME" >/proc/sys/kernel/hostname
hierarchies >/run/hierarchies
while read -r at type options; do
    umount "$at"
    if [ "$type" = cgroup ]; then
        mount -t cgroup -o "${options#rw,}" cgroup "$at"
    else
        mount -t cgroup2 cgroup2 "$at"
        mkdir -p "$at/node"
        echo $$ >"$at/node/cgroup.procs"
        for controller in $(cat "$at/cgroup.controllers"); do
            echo "+$controller" >"$at/cgroup.subtree_control"
        done
    fi
done </run/hierarchies
containerd --config /etc/containerd.toml >/run/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do
    kill -0 $!
    sleep 0.05
done
exec "$@"
"#;

/// The running programs of a node.
#[derive(Debug)]
pub(super) struct NodePrograms {
    /// containerd is its child.
    kubelet: Program,
    proxy: Program,
}

/// What every node needs to know of the cluster.
#[derive(Debug)]
pub(super) struct Membership<'a> {
    /// The directory of Kubernetes' programs.
    pub(super) programs: &'a Path,
    /// The API server's URL.
    pub(super) server: &'a str,
    pub(super) authority: &'a Authority,
    pub(super) proxy: ProxyMode,
    /// The configuration of the network plugin.
    pub(super) network: serde_json::Value,
    /// A directory that stands for the node's disk.
    pub(super) disk: PathBuf,
    /// The name of the node's control groups.
    pub(super) group: String,
    /// The archive of the image that holds pods' networks.
    pub(super) image: &'a Path,
}

impl NodePrograms {
    /// Makes a machine of the laboratory a node: does what its boot would do, writes its configuration, and starts
    /// containerd, kubelet and kube-proxy. It does not wait until the node is ready.
    pub(super) fn start(machine: &Node, member: &Membership<'_>) -> Result<Self> {
        let space = &machine.host.space;
        space.set_sysctls(&BRIDGE_NETFILTER)?;
        mount_disk(machine, &member.disk)?;
        load_guard(machine)?;
        write_configuration(machine, member)?;

        let mut kubelet = Command::new("sh");
        kubelet
            .args(["-c", NODE, "sh"])
            .arg(member.programs.join("kubelet"))
            .arg(format!("--config={CONFIGURATION}/kubelet.json"))
            .arg(format!("--kubeconfig={CONFIGURATION}/kubelet.kubeconfig"))
            .arg(format!("--hostname-override={}", machine.name))
            .arg(format!("--node-ip={},{}", machine.host.addresses.v4, machine.host.addresses.v6))
            .envs([("SCRIPT", NODE), ("NAME", &machine.name), ("GROUP", &member.group), ("ENTERED", "")]);
        let kubelet = Program::start(machine, "kubelet", &mut kubelet)?;
        let up =
            until(PATIENCE, &format!("containerd on {}", machine.name), || space.run("ctr version").ok());
        // When containerd has no log, the kubelet's says what failed before.
        explain(explain(up, machine, "containerd"), machine, "kubelet")?;
        import(machine, member.image)?;

        let mut proxy = Command::new(member.programs.join("kube-proxy"));
        proxy.arg(format!("--config={CONFIGURATION}/kube-proxy.json"));
        let proxy = Program::start(machine, "kube-proxy", &mut proxy)?;
        Ok(Self { kubelet, proxy })
    }

    /// Lets the programs outlive this process.
    pub(super) fn leave(self) {
        self.kubelet.leave();
        self.proxy.leave();
    }
}

/// Imports the archive of an image.
pub(super) fn import(machine: &Node, archive: &Path) -> Result<()> {
    let line = format!("ctr --namespace k8s.io images import {}", archive.display());
    machine.run(&line).map(drop)
}

/// Mounts what outlives the machine.
fn mount_disk(machine: &Node, disk: &Path) -> Result<()> {
    for at in ON_DISK {
        let kept = disk.join(at.trim_start_matches('/'));
        fs::create_dir_all(&kept).map_err(Error::io(format!("make {}", kept.display())))?;
        machine.host.space.open(&format!("make {at}"), || {
            // Where this machine has such a directory, the laboratory has put a symbolic link to it here.
            if Path::new(at).is_symlink() {
                fs::remove_file(at)?;
            }
            fs::create_dir_all(at)
        })?;
        machine.run(&format!("mount --bind {} {at}", kept.display()))?;
    }
    Ok(())
}

fn write_configuration(machine: &Node, member: &Membership<'_>) -> Result<()> {
    let space = &machine.host.space;
    space.run(&format!("mkdir -p {CONFIGURATION} {NETWORK_DIRECTORY}"))?;
    let write = |file: &str, text: &str| space.write(&format!("{CONFIGURATION}/{file}"), text);
    let name = format!("system:node:{}", machine.name);
    let authority = member.authority;
    let identity =
        authority.identify(&name, Some("system:nodes"), &[&machine.name], &machine.host.addresses.both())?;
    write("ca.crt", &authority.certificate)?;
    write("kubelet.crt", &identity.certificate)?;
    write("kubelet.key", &identity.key)?;
    write("kubelet.kubeconfig", &authority.kubeconfig(member.server, &identity))?;
    write("kubelet.json", &kubelet())?;
    let proxy = authority.identify("system:kube-proxy", None, &[], &[])?;
    write("kube-proxy.kubeconfig", &authority.kubeconfig(member.server, &proxy))?;
    write("kube-proxy.json", &proxy_configuration(machine, member.proxy))?;
    space.write("/etc/containerd.toml", &containerd())?;
    space.write(&format!("{NETWORK_DIRECTORY}/pods.conflist"), &member.network.to_string())
}

fn containerd() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{NETWORK_DIRECTORY}"
"#
    )
}

fn kubelet() -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": format!("{CONFIGURATION}/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": format!("{CONFIGURATION}/kubelet.crt"),
        "tlsPrivateKeyFile": format!("{CONFIGURATION}/kubelet.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "podLogsDir": "/var/lib/pod-logs",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "resolvConf": "",
        // The default of a minute, with which a change of a ConfigMap takes as long to arrive, is for large clusters.
        "syncFrequency": "1s",
    })
    .to_string()
}

fn proxy_configuration(machine: &Node, mode: ProxyMode) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode.to_string(),
        "clusterCIDR": cluster_cidrs(),
        "hostnameOverride": machine.name,
        "clientConnection": { "kubeconfig": format!("{CONFIGURATION}/kube-proxy.kubeconfig") },
        // Only the first network namespace may change the size of the connection table.
        "conntrack": { "maxPerCore": 0 },
    })
    .to_string()
}

//! The control plane: etcd, API server, controller manager and scheduler, all on one machine.

use std::{path::PathBuf, process::Command};

use super::{
    certificates::{Authority, TokenKeys},
    layout::{API_PORT, API_SERVICE, SERVICE_CIDRS},
    process::{Program, explain},
};
use crate::{Node, PATIENCE, Result, until};

/// Where keys, certificates and kubeconfigs are, on every machine.
pub(super) const CONFIGURATION: &str = "/etc/kubernetes";

/// The administrator's kubeconfig, on the control plane's machine.
pub(super) const ADMINISTRATOR: &str = "/etc/kubernetes/admin.kubeconfig";

/// Its etcd keeps everything in memory, in the machine's `/run`.
const ETCD: &str = "etcd --data-dir /run/etcd --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level warn";

/// The running programs of the control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    /// Absent while it is stopped.
    api_server: Option<Program>,
    etcd: Program,
    others: Vec<Program>,
    /// The directory of Kubernetes' programs.
    programs: PathBuf,
}

impl ControlPlane {
    /// Writes the machine's `/etc/kubernetes`, starts the programs, and waits until the API server is ready.
    pub(super) fn start(programs: PathBuf, machine: &Node, authority: &Authority) -> Result<Self> {
        write_configuration(machine, authority)?;
        let mut control_plane =
            Self { api_server: None, etcd: start_etcd(machine)?, others: Vec::new(), programs };
        control_plane.start_api_server(machine)?;
        for (program, arguments) in [
            (
                "kube-controller-manager",
                format!(
                    "--use-service-account-credentials --service-account-private-key-file \
                     {CONFIGURATION}/tokens.key --root-ca-file {CONFIGURATION}/ca.crt \
                     --flex-volume-plugin-dir /run/volume-plugins"
                ),
            ),
            ("kube-scheduler", String::new()),
        ] {
            let mut command = Command::new(control_plane.programs.join(program));
            command.args(arguments.split_whitespace()).arg("--leader-elect=false");
            command.arg("--kubeconfig").arg(format!("{CONFIGURATION}/{program}.kubeconfig"));
            control_plane.others.push(Program::start(machine, program, &mut command)?);
        }
        Ok(control_plane)
    }

    /// Kills the API server.
    pub(super) fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server, and waits until it is ready.
    pub(super) fn start_api_server(&mut self, machine: &Node) -> Result<()> {
        let address = machine.host.addresses.v4;
        let arguments = format!(
            "--etcd-servers=http://127.0.0.1:2379 --bind-address={address} --advertise-address={address} \
             --secure-port={API_PORT} --client-ca-file={CONFIGURATION}/ca.crt \
             --tls-cert-file={CONFIGURATION}/kube-apiserver.crt \
             --tls-private-key-file={CONFIGURATION}/kube-apiserver.key \
             --service-account-key-file={CONFIGURATION}/tokens.pub \
             --service-account-signing-key-file={CONFIGURATION}/tokens.key \
             --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range={SERVICE_CIDRS} \
             --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
             --kubelet-client-certificate={CONFIGURATION}/admin.crt \
             --kubelet-client-key={CONFIGURATION}/admin.key --kubelet-preferred-address-types=InternalIP"
        );
        let mut command = Command::new(self.programs.join("kube-apiserver"));
        command.args(arguments.split_whitespace());
        self.api_server = Some(Program::start(machine, "kube-apiserver", &mut command)?);
        let question = format!("{} --kubeconfig {ADMINISTRATOR} get --raw /readyz", self.kubectl());
        let ready = until(PATIENCE, "the API server to be ready", || machine.run(&question).ok());
        explain(ready.map(drop), machine, "kube-apiserver")
    }

    /// Keeps a copy of what etcd has. It is stopped for a moment.
    pub(super) fn save_store(&mut self, machine: &Node) -> Result<()> {
        self.change_store(machine, "cp -a /run/etcd /run/etcd.saved")
    }

    /// Gives etcd the copy. The API server must be stopped: it would not notice.
    pub(super) fn restore_store(&mut self, machine: &Node) -> Result<()> {
        self.change_store(machine, "cp -a --remove-destination -T /run/etcd.saved /run/etcd")
    }

    fn change_store(&mut self, machine: &Node, line: &str) -> Result<()> {
        self.etcd.stop();
        let changed = machine.run(line);
        self.etcd = start_etcd(machine)?;
        changed.map(drop)
    }

    /// Lets the programs outlive this process.
    pub(super) fn leave(self) {
        self.others.into_iter().chain(self.api_server).chain([self.etcd]).for_each(Program::leave);
    }

    /// The path of kubectl.
    pub(super) fn kubectl(&self) -> String {
        self.programs.join("kubectl").display().to_string()
    }
}

fn start_etcd(machine: &Node) -> Result<Program> {
    let mut etcd = Command::new("etcd");
    etcd.args(ETCD.split_whitespace().skip(1));
    Program::start(machine, "etcd", &mut etcd)
}

/// The URL of the API server on this machine.
pub(super) fn server(machine: &Node) -> String {
    format!("https://{}:{API_PORT}", machine.host.addresses.v4)
}

fn write_configuration(machine: &Node, authority: &Authority) -> Result<()> {
    let space = &machine.host.space;
    space.run(&format!("mkdir -p {CONFIGURATION}"))?;
    let write = |file: &str, text: &str| space.write(&format!("{CONFIGURATION}/{file}"), text);
    write("ca.crt", &authority.certificate)?;
    let tokens = TokenKeys::new()?;
    write("tokens.key", &tokens.private)?;
    write("tokens.pub", &tokens.public)?;
    let addresses = [&machine.host.addresses.both()[..], &API_SERVICE].concat();
    let hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let api_server = authority.identify("kube-apiserver", None, &hosts, &addresses)?;
    write("kube-apiserver.crt", &api_server.certificate)?;
    write("kube-apiserver.key", &api_server.key)?;
    let administrator = authority.identify("admin", Some("system:masters"), &[], &[])?;
    write("admin.crt", &administrator.certificate)?;
    write("admin.key", &administrator.key)?;
    let server = server(machine);
    write("admin.kubeconfig", &authority.kubeconfig(&server, &administrator))?;
    for program in ["kube-controller-manager", "kube-scheduler"] {
        let identity = authority.identify(&format!("system:{program}"), None, &[], &[])?;
        write(&format!("{program}.kubeconfig"), &authority.kubeconfig(&server, &identity))?;
    }
    Ok(())
}

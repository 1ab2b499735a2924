//! Who we are at the API server: the service account of our pod, or what a kubeconfig says.
//!
//! Files are read again when the server no longer takes what they said, so certificates and CAs may rotate. The token
//! of a service account is read again every minute without that; the library does it.

use std::path::{Path, PathBuf};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::settings::Settings;
use crate::store::{StoreError, StoreProblem};

/// Where the credentials are.
#[derive(Clone)]
pub(super) enum Credentials {
    /// The pod's: `/var/run/secrets/kubernetes.io/serviceaccount`, and the server in `KUBERNETES_SERVICE_HOST`.
    Pod,
    /// The current context of a kubeconfig.
    Kubeconfig(PathBuf),
    /// Those for a twin in this process.
    #[cfg(test)]
    Twin(super::twin::Door),
}

impl Credentials {
    /// Those that the settings name.
    pub(super) fn of(settings: &Settings) -> Self {
        settings.kubeconfig.clone().map_or(Self::Pod, Self::Kubeconfig)
    }

    /// A client with what the files say now. It must be called inside the runtime.
    ///
    /// # Errors
    /// [`StoreProblem::Denied`], with the file and the fix.
    pub(super) async fn client(&self) -> Result<(Client, String), StoreError> {
        let denied = |why| StoreError { operation: self.operation(), problem: StoreProblem::Denied { why } };
        let mut config = match self {
            Self::Pod => Config::incluster().map_err(|error| denied(in_a_pod(&error)))?,
            Self::Kubeconfig(path) => from_kubeconfig(path).await.map_err(denied)?,
            #[cfg(test)]
            Self::Twin(door) => return Ok((door.client(), "http://[2001:db8::1]".into())),
        };
        let is_loopback = matches!(config.cluster_url.host(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if config.cluster_url.scheme_str() != Some("https") && !is_loopback {
            return Err(denied("the server's address does not begin with https://".into()));
        }
        if config.accept_invalid_certs {
            return Err(denied(
                "insecure-skip-tls-verify would let anyone be the server; set certificate-authority instead"
                    .into(),
            ));
        }
        // Who tries again, and when, is decided where all stores are followed.
        config.default_retry = false;
        if let (Ok(name), Ok(value)) =
            ("user-agent".parse(), concat!("wireloom/", env!("CARGO_PKG_VERSION")).parse())
        {
            config.headers.push((name, value));
        }
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| denied(chain(&error)))?;
        Ok((client, url))
    }

    fn operation(&self) -> String {
        match self {
            Self::Pod => "use the service account of this pod".into(),
            Self::Kubeconfig(path) => format!("use the kubeconfig {}", path.display()),
            #[cfg(test)]
            Self::Twin(_) => "use the twin".into(),
        }
    }
}

async fn from_kubeconfig(path: &Path) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| kubeconfig_mistake(&error))?;
    let users = kubeconfig.auth_infos.iter().filter_map(|user| user.auth_info.as_ref());
    if users.into_iter().any(|user| user.exec.is_some() || user.auth_provider.is_some()) {
        return Err("it names a program that prints credentials, and an agent that is root runs none; use a token, a \
                    tokenFile or a client certificate"
            .into());
    }
    let clusters = kubeconfig.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
    let names_a_proxy = clusters.into_iter().any(|cluster| cluster.proxy_url.is_some());
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.map_err(|error| kubeconfig_mistake(&error))?;
    if !names_a_proxy {
        // It comes from HTTPS_PROXY, which is meant for what is outside the cluster.
        config.proxy_url = None;
    }
    Ok(config)
}

fn in_a_pod(error: &InClusterError) -> String {
    let fix = match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "the kubelet sets KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT in pods; elsewhere, set kubeconfig \
             in [membership]"
        }
        InClusterError::ParseClusterPort(_) | InClusterError::ParseClusterUrl(_) => {
            "write an address or a name into KUBERNETES_SERVICE_HOST, and a port into KUBERNETES_SERVICE_PORT"
        }
        _ => {
            "the pod needs its service account's token, ca.crt and namespace in \
             /var/run/secrets/kubernetes.io/serviceaccount (automountServiceAccountToken: true)"
        }
    };
    format!("{}; {fix}", chain(error))
}

fn kubeconfig_mistake(error: &KubeconfigError) -> String {
    let fix = match error {
        KubeconfigError::ReadConfig(..) => "write the file's path into kubeconfig in [membership]",
        KubeconfigError::CurrentContextNotSet | KubeconfigError::LoadContext(_) => {
            "`kubectl config get-contexts` lists what it has, `kubectl config use-context` chooses"
        }
        _ => "`kubectl --kubeconfig FILE get nodes` must work with it",
    };
    let what = match error {
        // The library would show the lines around it, which may be secrets.
        KubeconfigError::Parse(error) => {
            let place =
                error.location().map(|place| format!(" at line {}, column {}", place.line(), place.column()));
            format!("it is not a kubeconfig in YAML{}", place.unwrap_or_default())
        }
        error => chain(error),
    };
    format!("{what}; {fix}")
}

/// An error with what caused it, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

//! The cluster's certificates: its authority, and an identity for every program.

use std::{fmt, net::IpAddr};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::json;

use crate::{Error, Result};

/// A certificate authority that every program of the cluster trusts.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub(super) certificate: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate and its private key, both in PEM. They protect nothing outside the laboratory.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A key pair that signs service accounts' tokens, both halves in PEM.
#[derive(Debug)]
pub(super) struct TokenKeys {
    pub(super) private: String,
    pub(super) public: String,
}

impl Authority {
    pub(super) fn new() -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new()).map_err(failed)?;
        parameters.distinguished_name.push(DnType::CommonName, "laboratory");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    /// Signs a new identity: to Kubernetes it is the user `name`, in `group`, and a server with these DNS names and
    /// addresses.
    pub(super) fn identify(
        &self,
        name: &str,
        group: Option<&str>,
        hosts: &[&str],
        addresses: &[IpAddr],
    ) -> Result<Identity> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let mut parameters = CertificateParams::new(hosts).map_err(failed)?;
        parameters.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        parameters.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }

    /// The file with which a client finds the API server and proves who it is. JSON is YAML as well.
    pub(super) fn kubeconfig(&self, server: &str, client: &Identity) -> String {
        use base64ct::{Base64, Encoding as _};
        let data = |pem: &str| Base64::encode_string(pem.as_bytes());
        let cluster = json!({ "server": server, "certificate-authority-data": data(&self.certificate) });
        let user = json!({
            "client-certificate-data": data(&client.certificate),
            "client-key-data": data(&client.key),
        });
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": "lab", "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            "current-context": "lab",
        })
        .to_string()
    }
}

impl TokenKeys {
    pub(super) fn new() -> Result<Self> {
        let pair = KeyPair::generate().map_err(failed)?;
        Ok(Self { private: pair.serialize_pem(), public: pair.public_key_pem() })
    }
}

fn failed(error: rcgen::Error) -> Error {
    Error::io("make a certificate")(std::io::Error::other(error))
}

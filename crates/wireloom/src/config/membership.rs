//! `[membership]` of `agent.toml`: the source of the mesh, and what this node says of itself there.

use std::{collections::BTreeSet, net::IpAddr, ops::Range};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use wireloom_membership::{
    Source,
    config_file::{Mistake, TomlFile},
    etcd, kubernetes, values,
};
use wireloom_plan::{
    own_record::{Declared, Endpoint},
    warning::Warning,
};

use super::values::{AbsolutePath, HostAddress, LinkAddress, Prefix};

/// The mesh file that is read unless another one is named.
const MESH_FILE: &str = "/etc/wireloom/mesh.toml";

/// The mesh in etcd that is read unless another one is named.
const MESH: &str = "default";

/// The longest name of a mesh: it is a part of every key in etcd.
const MESH_NAME_MAX: usize = 63;

/// A field's name, its place in the file, and the sources that it is for.
type Field<'a> = (&'a str, Option<Range<usize>>, &'a [SourceKind]);

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Membership {
    source: Option<Spanned<SourceKind>>,
    path: Option<Spanned<AbsolutePath>>,
    endpoints: Option<Spanned<Vec<Url>>>,
    mesh: Option<Spanned<MeshName>>,
    ca_file: Option<Spanned<AbsolutePath>>,
    cert_file: Option<Spanned<AbsolutePath>>,
    key_file: Option<Spanned<AbsolutePath>>,
    username: Option<Spanned<String>>,
    password_file: Option<Spanned<AbsolutePath>>,
    kubeconfig: Option<Spanned<AbsolutePath>>,
    pools: Option<Spanned<Vec<Prefix>>>,
    felix_peers: Option<Spanned<bool>>,
    workloads: Option<Spanned<Workloads>>,
    endpoint: Option<Spanned<Auto<OwnEndpoint>>>,
    addresses: Option<Spanned<Auto<Vec<HostAddress>>>>,
    tunnel_addresses: Option<Spanned<Auto<Vec<HostAddress>>>>,
    link_addresses: Option<Spanned<Vec<LinkAddress>>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum SourceKind {
    #[default]
    File,
    Etcd,
    Kubernetes,
}

impl SourceKind {
    const ALL: [Self; 3] = [Self::File, Self::Etcd, Self::Kubernetes];

    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl<'de> Deserialize<'de> for SourceKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            de::Error::custom(format!(
                "this version has no membership source {name:?}; write \"file\", \"etcd\" or \"kubernetes\""
            ))
        })
    }
}

/// A value, or `"auto"`: the agent finds it out.
#[derive(Debug)]
enum Auto<T> {
    Auto,
    Said(T),
}

/// What can be said instead of `"auto"`.
trait Said: Sized {
    /// The value that is written as a text, or what is wrong with it and the fix.
    fn of_text(text: &str) -> Result<Self, String>;

    /// The value that is written as a list of texts, or what is wrong with it and the fix.
    fn of_list(list: Vec<String>) -> Result<Self, String>;
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "this is neither a text nor a list of texts; write \"auto\", or what it is")]
enum TextOrList {
    Text(String),
    List(Vec<String>),
}

impl<'de, T: Said> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let said = match TextOrList::deserialize(deserializer)? {
            TextOrList::Text(text) if text == "auto" => return Ok(Self::Auto),
            TextOrList::Text(text) => T::of_text(&text),
            TextOrList::List(list) => T::of_list(list),
        };
        said.map(Self::Said).map_err(de::Error::custom)
    }
}

#[derive(Debug)]
struct OwnEndpoint(Endpoint);

impl Said for OwnEndpoint {
    fn of_text(text: &str) -> Result<Self, String> {
        values::endpoint(text).map(Self).map_err(|what| format!("{what}, or \"auto\""))
    }

    fn of_list(_: Vec<String>) -> Result<Self, String> {
        Err("a node has one endpoint to write down; write it without brackets, or \"auto\" for one of each \
             family"
            .into())
    }
}

impl Said for Vec<HostAddress> {
    fn of_text(text: &str) -> Result<Self, String> {
        Err(format!(
            "{text:?} is not a list; write \"auto\", or addresses in brackets, such as [\"192.0.2.1\"]"
        ))
    }

    fn of_list(list: Vec<String>) -> Result<Self, String> {
        list.into_iter().map(HostAddress::check).collect()
    }
}

/// Where this node's workloads come from, or what they are.
#[derive(Debug)]
enum Workloads {
    From(kubernetes::Workloads),
    Said(BTreeSet<ipnet::IpNet>),
}

impl<'de> Deserialize<'de> for Workloads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextOrList::deserialize(deserializer)? {
            TextOrList::Text(text) => match text.as_str() {
                "auto" => Ok(Self::From(kubernetes::Workloads::Auto)),
                "pod-cidrs" => Ok(Self::From(kubernetes::Workloads::PodCidrs)),
                "calico" => Ok(Self::From(kubernetes::Workloads::Calico)),
                _ => Err(format!(
                    "{text:?} is no place that workloads come from; write \"auto\", \"pod-cidrs\", \"calico\", or \
                     their CIDRs in brackets, such as [\"10.161.1.0/24\"]"
                )),
            },
            TextOrList::List(list) => {
                let cidrs = list.into_iter().map(|cidr| Ok(Prefix::check(cidr)?.0));
                cidrs.collect::<Result<_, _>>().map(Self::Said)
            }
        }
        .map_err(de::Error::custom)
    }
}

/// A URL of an etcd server.
#[derive(Debug)]
struct Url(String);

impl Url {
    /// Whether what is sent there is encrypted, or does not leave this machine.
    fn is_private(&self) -> bool {
        let Some(rest) = self.0.strip_prefix("http://") else { return true };
        let host = match rest.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host,
            _ => rest,
        };
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let rest = text.strip_prefix("https://").or(text.strip_prefix("http://"));
        let is_host = |rest: &str| {
            !rest.is_empty()
                && !rest.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#'))
        };
        match rest {
            Some(rest) if is_host(rest) => Ok(Self(text)),
            _ => Err(de::Error::custom(format!(
                "{text:?} is not the URL of an etcd server; write one such as \"https://192.0.2.1:2379\""
            ))),
        }
    }
}

/// The name of a mesh in etcd.
#[derive(Debug)]
struct MeshName(String);

impl<'de> Deserialize<'de> for MeshName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=MESH_NAME_MAX).contains(&name.len()) && name.chars().all(is_allowed) {
            return Ok(Self(name));
        }
        Err(de::Error::custom(format!(
            "{name:?} is not the name of a mesh; use 1 to {MESH_NAME_MAX} letters, digits, hyphens, dots and \
             underscores"
        )))
    }
}

impl Membership {
    fn kind(&self) -> SourceKind {
        self.source.as_ref().map(|source| *source.as_ref()).unwrap_or_default()
    }

    /// Refuses what does not fit the source.
    pub(super) fn check(&self, text: &TomlFile) -> Result<(), Mistake> {
        self.refuse_fields_of_others(text)?;
        match self.kind() {
            SourceKind::File => Ok(()),
            SourceKind::Etcd => self.check_etcd(text),
            SourceKind::Kubernetes => Ok(()),
        }
    }

    fn refuse_fields_of_others(&self, text: &TomlFile) -> Result<(), Mistake> {
        use SourceKind::{Etcd, File, Kubernetes};
        let stores: &[SourceKind] = &[Etcd, Kubernetes];
        let fields: [Field<'_>; 16] = [
            ("path", span(&self.path), &[File]),
            ("endpoints", span(&self.endpoints), &[Etcd]),
            ("mesh", span(&self.mesh), &[Etcd]),
            ("ca_file", span(&self.ca_file), &[Etcd]),
            ("cert_file", span(&self.cert_file), &[Etcd]),
            ("key_file", span(&self.key_file), &[Etcd]),
            ("username", span(&self.username), &[Etcd]),
            ("password_file", span(&self.password_file), &[Etcd]),
            ("kubeconfig", span(&self.kubeconfig), &[Kubernetes]),
            ("pools", span(&self.pools), &[Kubernetes]),
            ("felix_peers", span(&self.felix_peers), &[Kubernetes]),
            ("workloads", span(&self.workloads), stores),
            ("endpoint", span(&self.endpoint), stores),
            ("addresses", span(&self.addresses), stores),
            ("tunnel_addresses", span(&self.tunnel_addresses), stores),
            ("link_addresses", span(&self.link_addresses), stores),
        ];
        let kind = self.kind();
        for (field, span, of) in fields {
            let Some(span) = span.filter(|_| !of.contains(&kind)) else { continue };
            let sources: Vec<_> = of.iter().map(|kind| format!("\"{}\"", kind.name())).collect();
            let sources = sources.join(" or ");
            return Err(text.mistake(
                &span,
                format!(
                    "{field} is for source = {sources}, and the source is \"{}\"; remove {field}, or write source = \
                     {sources}",
                    kind.name()
                ),
            ));
        }
        Ok(())
    }

    fn check_etcd(&self, text: &TomlFile) -> Result<(), Mistake> {
        let source = span(&self.source).unwrap_or_default();
        let no_endpoints =
            "source = \"etcd\" needs to know where etcd is; write endpoints = [\"https://ADDRESS:2379\"]";
        match &self.endpoints {
            None => return Err(text.mistake(&source, no_endpoints)),
            Some(endpoints) if endpoints.as_ref().is_empty() => {
                return Err(text.mistake(&endpoints.span(), no_endpoints));
            }
            Some(_) => {}
        }
        match &self.workloads {
            Some(workloads) if matches!(workloads.as_ref(), Workloads::From(_)) => Err(text.mistake(
                &workloads.span(),
                "etcd knows nobody's workloads; write the CIDRs of this node's, such as workloads = \
                 [\"10.161.1.0/24\"], or [] if it has none",
            )),
            None => Err(text.mistake(
                &source,
                "etcd knows nobody's workloads; write the CIDRs of this node's, such as workloads = \
                 [\"10.161.1.0/24\"], or [] if it has none",
            )),
            Some(_) => self.check_credentials(text),
        }
    }

    fn check_credentials(&self, text: &TomlFile) -> Result<(), Mistake> {
        let pairs = [
            ("cert_file", span(&self.cert_file), "key_file", span(&self.key_file)),
            ("username", span(&self.username), "password_file", span(&self.password_file)),
        ];
        for (first, of_first, second, of_second) in pairs {
            let (there, present, absent) = match (of_first, of_second) {
                (Some(span), None) => (span, first, second),
                (None, Some(span)) => (span, second, first),
                _ => continue,
            };
            return Err(text.mistake(&there, format!("{present} needs {absent}; write both, or neither")));
        }
        let mut endpoints = self.endpoints.iter().flat_map(AsRef::as_ref);
        match &self.password_file {
            Some(file) if endpoints.any(|endpoint| !endpoint.is_private()) => Err(text.mistake(
                &file.span(),
                "the password would cross the network in plaintext, because an endpoint is http://; write https://, \
                 or remove username and password_file",
            )),
            _ => Ok(()),
        }
    }

    /// What is valid and yet may be a mistake.
    pub(super) fn warning(&self) -> Option<Warning> {
        let mut endpoints = self.endpoints.iter().flat_map(AsRef::as_ref);
        let open = endpoints.find(|endpoint| !endpoint.is_private())?;
        Some(Warning::PlaintextStore { endpoint: open.0.clone() })
    }

    /// The source, and what the operator says of this node.
    pub(super) fn into_source(self) -> (Source, Declared) {
        let kind = self.kind();
        let (workloads_from, workloads) = match self.workloads.map(Spanned::into_inner) {
            Some(Workloads::From(from)) => (from, None),
            Some(Workloads::Said(said)) => (kubernetes::Workloads::default(), Some(said)),
            None => (kubernetes::Workloads::default(), None),
        };
        let declared = Declared {
            workloads,
            endpoint: said(self.endpoint).map(|endpoint| endpoint.0),
            addresses: said(self.addresses).map(|list| list.into_iter().map(|it| it.0).collect()),
            tunnel_addresses: said(self.tunnel_addresses)
                .map(|list| list.into_iter().map(|it| it.0).collect()),
            link_addresses: list(self.link_addresses).into_iter().map(|it| it.0).collect(),
        };
        let source = match kind {
            SourceKind::File => Source::File(path(self.path).unwrap_or_else(|| MESH_FILE.into())),
            SourceKind::Etcd => Source::Etcd(Box::new(etcd::Settings {
                endpoints: list(self.endpoints).into_iter().map(|url| url.0).collect(),
                mesh: self.mesh.map_or_else(|| MESH.to_owned(), |mesh| mesh.into_inner().0),
                ca_file: path(self.ca_file),
                cert_file: path(self.cert_file),
                key_file: path(self.key_file),
                username: self.username.map(Spanned::into_inner),
                password_file: path(self.password_file),
            })),
            SourceKind::Kubernetes => Source::Kubernetes(Box::new(kubernetes::Settings {
                kubeconfig: path(self.kubeconfig),
                workloads: workloads_from,
                pools: list(self.pools).into_iter().map(|pool| pool.0).collect(),
                felix_peers: self.felix_peers.is_some_and(Spanned::into_inner),
            })),
        };
        (source, declared)
    }
}

fn span<T>(field: &Option<Spanned<T>>) -> Option<Range<usize>> {
    field.as_ref().map(Spanned::span)
}

fn path(field: Option<Spanned<AbsolutePath>>) -> Option<std::path::PathBuf> {
    field.map(|path| path.into_inner().0)
}

fn list<T>(field: Option<Spanned<Vec<T>>>) -> Vec<T> {
    field.map(Spanned::into_inner).unwrap_or_default()
}

fn said<T>(field: Option<Spanned<Auto<T>>>) -> Option<T> {
    match field?.into_inner() {
        Auto::Auto => None,
        Auto::Said(said) => Some(said),
    }
}

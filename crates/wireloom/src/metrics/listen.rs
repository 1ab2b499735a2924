//! Where metrics are served.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The environment variable that replaces `[metrics] listen`: on Kubernetes all nodes share one `agent.toml`, and each
/// has an address of its own.
const VARIABLE: &str = "WIRELOOM_METRICS_LISTEN";

/// An address and port to serve metrics at; `None`: nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl Listen {
    /// What the environment says; `None` when it says nothing.
    ///
    /// # Errors
    /// What is wrong, and the fix.
    pub(crate) fn from_environment() -> Result<Option<Self>, String> {
        match std::env::var(VARIABLE) {
            Ok(text) => text.parse().map(Some).map_err(|error| format!("{VARIABLE}: {error}")),
            Err(_) => Ok(None),
        }
    }
}

impl std::str::FromStr for Listen {
    type Err = String;

    /// Reads `ADDRESS:PORT`. An IPv6 address needs no brackets, because the port cannot be left out: Kubernetes gives
    /// addresses without them.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let bare = || {
            let (address, port) = text.rsplit_once(':')?;
            Some(SocketAddr::new(IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port.parse().ok()?))
        };
        match text.parse().ok().or_else(bare) {
            Some(address) if address.port() != 0 => Ok(Self(Some(address))),
            _ => Err(format!(
                "{text:?} is no address and port; write one such as \"127.0.0.1:9586\" or \"[::1]:9586\", or \"\" for \
                 no metrics"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_may_lack_brackets() {
        let read =
            |text: &str| text.parse::<Listen>().map(|listen| listen.0.map(|address| address.to_string()));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("127.0.0.1:9586"), Ok(Some("127.0.0.1:9586".into())));
        assert_eq!(read("[fd00::1]:9586"), Ok(Some("[fd00::1]:9586".into())));
        assert_eq!(read("fd00::1:9586"), Ok(Some("[fd00::1]:9586".into())));
        for wrong in ["9586", ":9586", "127.0.0.1", "127.0.0.1:0", "localhost:9586", "127.0.0.1:95860"] {
            assert!(read(wrong).unwrap_err().contains("127.0.0.1:9586"), "{wrong}");
        }
    }
}

//! Where a store is, in addresses: what leads there must not become a node's workload, or nobody could reach the store
//! to take it back.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};

/// How long the name of a store's member may take to be resolved. All are resolved at the same time.
const LOOKUP: Duration = Duration::from_secs(2);

/// The addresses in these URLs, and those that names in them lead to now. What cannot be resolved in time has none.
pub(crate) async fn of_urls(urls: &[String]) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    let mut names = Vec::new();
    for url in urls {
        let host = host(url);
        match host.parse::<IpAddr>() {
            Ok(address) => {
                addresses.insert(address.to_canonical());
            }
            Err(_) => names.push((host.to_owned(), 0)),
        }
    }
    addresses.extend(found(names.into_iter().map(lookup_host)).await);
    addresses
}

/// What these lookups find in time. DNS may be away, or not know one name of several: the others are found.
async fn found<T: Iterator<Item = SocketAddr>>(
    lookups: impl Iterator<Item: Future<Output = io::Result<T>>>,
) -> Vec<IpAddr> {
    let all = futures::future::join_all(lookups.map(|lookup| timeout(LOOKUP, lookup))).await;
    all.into_iter().flatten().flatten().flatten().map(|found| found.ip().to_canonical()).collect()
}

/// The host in a URL `SCHEME://HOST[:PORT][/PATH]`, without an IPv6 address's brackets.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_those_of_the_urls_and_of_their_names() {
        let of =
            async |urls: &[&str]| of_urls(&urls.iter().map(ToString::to_string).collect::<Vec<_>>()).await;
        let expected: BTreeSet<IpAddr> =
            ["192.0.2.1", "2001:db8::1", "192.0.2.7"].map(|it| it.parse().unwrap()).into();
        let urls = ["https://192.0.2.1:2379", "http://[2001:db8::1]:2379", "https://[::ffff:192.0.2.7]", ""];
        assert_eq!(of(&urls).await, expected);
        let local = of(&["https://localhost:6443/path"]).await;
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback), "{local:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_hangs_does_not_take_the_others_away() {
        let lookup = async |number: u8| match number {
            1 => std::future::pending().await,
            2 => Err(io::Error::other("no such name")),
            _ => Ok([SocketAddr::from(([192, 0, 2, number], 0))].into_iter()),
        };
        assert_eq!(found([1, 2, 3].into_iter().map(lookup)).await, [IpAddr::from([192, 0, 2, 3])]);
    }
}

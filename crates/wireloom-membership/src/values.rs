//! The values of a node's record, as texts: the same in `mesh.toml`, in `agent.toml` and in every store. What is wrong
//! with one is said in a sentence, with the fix.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use wireloom_plan::{endpoint_name::EndpointNameError, own_record::Endpoint};
use wireloom_types::{KeyError, PublicKey};

/// A public key, in base64.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|error: KeyError| error.to_string())
}

/// Where a node's WireGuard listens: `ADDRESS:PORT` or `NAME:PORT`.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    let mistake = |why: &str| {
        format!(
            "{text:?} is not an endpoint: {why}; write ADDRESS:PORT or NAME:PORT, such as \"192.0.2.1:51820\", \
             \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\""
        )
    };
    match text.parse::<SocketAddr>() {
        Ok(endpoint) if endpoint.port() == 0 => Err(mistake("it has no port from 1 to 65535")),
        Ok(endpoint) if !is_a_hosts(endpoint.ip()) => Err(mistake("nobody has that address")),
        Ok(endpoint) => Ok(Endpoint::Address(endpoint)),
        Err(_) => {
            text.parse().map(Endpoint::Name).map_err(|error: EndpointNameError| mistake(&error.to_string()))
        }
    }
}

/// Whether one machine can have this address.
fn is_a_hosts(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_broadcast
}

/// An address of one machine.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn address(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if is_a_hosts(address) => Ok(address),
        _ => Err(format!(
            "{text:?} is not the address of a host; write one such as \"192.0.2.1\" or \"2001:db8::1\", without a \
             prefix length"
        )),
    }
}

/// An address on the link between the peers. Link-local ones derive from the keys and are not declared.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn link_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local {
        return Err(format!(
            "{text:?} is link-local; remove it: each peer's link-local address derives from its key"
        ));
    }
    Ok(address)
}

/// A prefix without host bits.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn cidr(text: &str) -> Result<IpNet, String> {
    let cidr: IpNet = text.parse().map_err(|_| {
        format!(
            "{text:?} is not a CIDR; write NETWORK/LENGTH, such as \"10.161.1.0/24\", and /32 or /128 for a single \
             address"
        )
    })?;
    let network = cidr.trunc();
    if network == cidr {
        return Ok(cidr);
    }
    let single = IpNet::from(cidr.addr());
    Err(format!("{text:?} has host bits set; write \"{network}\", or \"{single}\""))
}

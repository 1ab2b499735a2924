//! The established TCP connections by which machines are administered (`NETLINK_SOCK_DIAG`, sock_diag(7)).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use wireloom_netlink::{Client, Protocol};
use wireloom_plan::connections::Connection;

use crate::error::Cause;

/// `SOCK_DIAG_BY_FAMILY` of include/uapi/linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `AF_INET`
const V4: u8 = 2;
/// `AF_INET6`
const V6: u8 = 10;

/// Those of this network namespace. It only informs: there are none where the kernel cannot say.
pub(super) fn observe() -> BTreeSet<Connection> {
    let all = [V4, V6].map(dump);
    let known = all.into_iter().flat_map(|sockets| {
        sockets.unwrap_or_else(|cause| {
            tracing::debug!("cannot list the TCP connections: {cause}");
            Vec::new()
        })
    });
    known.filter_map(|socket| socket.0).collect()
}

fn dump(family: u8) -> Result<Vec<Socket>, Cause> {
    let mut client = Client::open(Protocol::SocketDiagnosis)?;
    let request = Socket::request(family);
    Ok(client.dump(&request)?)
}

/// A socket of the kernel's answer, or the request for all of them.
#[derive(Debug, Clone)]
struct Socket(Option<Connection>, Vec<u8>);

impl Socket {
    /// `struct inet_diag_req_v2` of include/uapi/linux/inet_diag.h, for established connections.
    fn request(family: u8) -> Self {
        /// `IPPROTO_TCP`
        const TCP: u8 = 6;
        /// `TCP_ESTABLISHED` of include/net/tcp_states.h.
        const ESTABLISHED: u32 = 1 << 1;
        // The identity of a socket, 48 bytes, is not asked for.
        let mut request = vec![0; 56];
        request[..2].copy_from_slice(&[family, TCP]);
        request[4..8].copy_from_slice(&ESTABLISHED.to_ne_bytes());
        Self(None, request)
    }

    /// `struct inet_diag_msg`: family, state, timer and retransmissions, then ports and addresses, here and there.
    fn connection(answer: &[u8]) -> Option<Connection> {
        let port = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
        let remote = answer.get(24..40)?;
        let remote = match *answer.first()? {
            V4 => IpAddr::V4(<[u8; 4]>::try_from(&remote[..4]).map(Ipv4Addr::from).ok()?),
            V6 => IpAddr::V6(<[u8; 16]>::try_from(remote).map(Ipv6Addr::from).ok()?).to_canonical(),
            _ => return None,
        };
        Connection::of(remote, port(4)?, port(6)?)
    }
}

impl NetlinkSerializable for Socket {
    fn message_type(&self) -> u16 {
        BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        self.1.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.1);
    }
}

impl NetlinkDeserializable for Socket {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(Self::connection(payload), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// As the kernel answers: an SSH session from 192.168.1.2 and one to it, and one of IPv6 that maps IPv4.
    #[test]
    fn ports_and_the_remote_address_are_read() {
        let answer = |family: u8, [local, remote]: [u16; 2], address: &[u8]| {
            let mut answer = vec![0; 72];
            answer[..2].copy_from_slice(&[family, 1]);
            answer[4..6].copy_from_slice(&local.to_be_bytes());
            answer[6..8].copy_from_slice(&remote.to_be_bytes());
            answer[24..24 + address.len()].copy_from_slice(address);
            answer
        };
        let peer = [192, 168, 1, 2];
        let expected = |port| Some(Connection { remote: IpAddr::from(peer), port });
        assert_eq!(Socket::connection(&answer(V4, [22, 40000], &peer)), expected(22));
        assert_eq!(Socket::connection(&answer(V4, [40000, 22], &peer)), None, "a session to it");
        assert_eq!(Socket::connection(&answer(V4, [40000, 6443], &peer)), expected(6443));
        let mapped = Ipv4Addr::from(peer).to_ipv6_mapped().octets();
        assert_eq!(Socket::connection(&answer(V6, [2380, 40000], &mapped)), expected(2380));
        assert_eq!(Socket::connection(&answer(V4, [40000, 80], &peer)), None);
        for cut in 0..40 {
            assert_eq!(Socket::connection(&answer(V4, [22, 40000], &peer)[..cut]), None);
        }
    }

    #[test]
    fn the_kernel_lists_established_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(dump(V4).unwrap().len() >= 2);
        dump(V6).unwrap();
    }
}

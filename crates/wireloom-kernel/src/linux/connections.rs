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

/// A socket of the kernel's answer, or the request for those of interest.
#[derive(Debug, Clone)]
pub(super) struct Socket(Option<Connection>, Vec<u8>);

impl Socket {
    /// `struct inet_diag_req_v2` of include/uapi/linux/inet_diag.h, for established connections, with a filter: a node
    /// that others reach services by may have hundreds of thousands, hardly any of them of interest.
    fn request(family: u8) -> Self {
        /// `IPPROTO_TCP`
        const TCP: u8 = 6;
        /// `TCP_ESTABLISHED` of include/net/tcp_states.h.
        const ESTABLISHED: u32 = 1 << 1;
        /// `INET_DIAG_REQ_BYTECODE`
        const FILTER: u16 = 1;
        // The identity of a socket, 48 bytes, is not asked for.
        let mut request = vec![0; 56];
        request[..2].copy_from_slice(&[family, TCP]);
        request[4..8].copy_from_slice(&ESTABLISHED.to_ne_bytes());
        let filter = filter();
        // `struct nlattr`, whose length counts itself. The filter's is a multiple of four.
        request.extend(u16::try_from(filter.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        request.extend(FILTER.to_ne_bytes());
        request.extend(filter);
        Self(None, request)
    }

    /// `struct inet_diag_msg`: family, state, timer and retransmissions, then ports and addresses, here and there.
    pub(super) fn connection(answer: &[u8]) -> Option<Connection> {
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

/// The program that the kernel runs for each socket (`inet_diag_bc_run` in net/ipv4/inet_diag.c): one of the ports is
/// of interest. An operation says how far it is to the next one where it holds, and where it does not;
/// to the program's end is yes, to four bytes beyond it no.
fn filter() -> Vec<u8> {
    /// `INET_DIAG_BC_S_COND` and `INET_DIAG_BC_D_COND`: the local port, and the remote one.
    const ENDS: [u8; 2] = [7, 8];
    /// `INET_DIAG_BC_JMP`
    const JUMP: u8 = 1;
    /// Bytes of `struct inet_diag_bc_op`.
    const OPERATION: u8 = 4;
    /// Bytes of one with a `struct inet_diag_hostcond`.
    const CONDITION: u8 = OPERATION + 8;
    let [here, there] = ENDS;
    let conditions = Connection::PORTS.into_iter().flat_map(|port| {
        let of_interest =
            |local, remote| Connection::of(Ipv4Addr::UNSPECIFIED.into(), local, remote).is_some();
        let ends = [(here, of_interest(port, 0)), (there, of_interest(0, port))];
        ends.into_iter().filter_map(move |(end, matters)| matters.then_some((end, port)))
    });
    let conditions: Vec<_> = conditions.collect();
    // From the end, because a jump to it says how far that is.
    let mut program = Vec::new();
    for (end, port) in conditions.into_iter().rev() {
        let operation = |code: u8, yes: u8, no: u16| [&[code, yes][..], &no.to_ne_bytes()].concat();
        let mut earlier = operation(end, CONDITION, u16::from(CONDITION + OPERATION));
        // Any family, any address.
        earlier.extend([0; 4]);
        earlier.extend(i32::from(port).to_ne_bytes());
        if !program.is_empty() {
            let to_end = program.len() + usize::from(OPERATION);
            earlier.extend(operation(JUMP, OPERATION, u16::try_from(to_end).unwrap_or(u16::MAX)));
        }
        earlier.append(&mut program);
        program = earlier;
    }
    program
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

    /// Of the two ends of a connection to a port of interest both are listed, and of any other neither.
    #[test]
    fn the_kernel_lists_established_connections_of_interest_alone() {
        let port = 10250;
        let listener = TcpListener::bind(("127.0.0.9", port)).unwrap();
        let other = TcpListener::bind("127.0.0.9:0").unwrap();
        let _clients = [&listener, &other].map(|it| TcpStream::connect(it.local_addr().unwrap()).unwrap());
        let listed = dump(V4).unwrap();
        assert!(listed.iter().filter(|socket| socket.0.is_some_and(|it| it.port == port)).count() >= 2);
        let others: Vec<_> = listed.iter().filter(|socket| socket.0.is_none()).collect();
        assert!(others.is_empty(), "{others:?}");
        dump(V6).unwrap();
    }
}

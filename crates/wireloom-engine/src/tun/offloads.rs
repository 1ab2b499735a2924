//! Negotiation of segmentation offload with the kernel, for a TUN or TAP descriptor.

use std::{fs::File, os::fd::AsRawFd};

use crate::{offload::coalesce::Joinable, packet::udp};

/// Whether the network stack and the device exchange super-packets: many segments in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// They do, or the interface is not opened.
    On,
    /// They do not.
    Off,
    /// They do if the kernel can.
    #[default]
    Auto,
}

/// The offloads that were agreed on with the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offloads {
    /// Whether packets are preceded by a virtio-net header.
    pub(super) headers: bool,
    /// The super-packets that both sides take.
    pub(super) joinable: Joinable,
}

/// Whether interfaces can have virtio-net headers (`IFF_VNET_HDR`).
#[expect(unsafe_code, reason = "an ioctl takes the address of its argument")]
pub(super) fn has_headers(file: &File) -> bool {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int at the address.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) };
    done == 0 && features & libc::IFF_VNET_HDR as libc::c_uint != 0
}

/// Enables as many offloads as the kernel has, on an interface with virtio-net headers.
pub(super) fn enable(file: &File) -> Offloads {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // UDP since Linux 6.2.
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let joinable = if set(file, tcp | udp) {
        Joinable { tcp: true, udp: true }
    } else {
        Joinable { tcp: set(file, tcp), udp: false }
    };
    Offloads { headers: true, joinable }
}

/// Disables what an earlier process may have enabled on an interface that it left.
pub(super) fn disable(file: &File) -> Offloads {
    set(file, 0);
    Offloads::default()
}

#[expect(unsafe_code, reason = "libc does not check ioctl's arguments")]
fn set(file: &File, offloads: libc::c_uint) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) == 0 }
}

/// The longest super-packets (`IFLA_GSO_MAX_SIZE`), in bytes, whose messages fit one send.
///
/// TCP makes them of full segments, and leaves room for the longest headers (`MAX_TCP_HEADER` in include/net/tcp.h)
/// besides.
pub(super) fn gso_max_size(mtu: usize) -> u32 {
    const TCP_HEADER_ROOM: usize = 340;
    /// The headers of IPv4 and of TCP with timestamps.
    const HEADERS: usize = 52;
    const LEAST: usize = 4096;
    let segments = udp::PAYLOAD_MAX / wireloom_proto::message::data_len(mtu, mtu).max(1);
    let payload = segments * mtu.saturating_sub(HEADERS);
    (payload + TCP_HEADER_ROOM).clamp(LEAST, 65_536) as u32
}

#[cfg(test)]
mod tests {
    use super::gso_max_size;

    #[test]
    fn the_messages_of_a_super_packet_fit_one_send() {
        // 45 times 1,452 bytes are 65,340.
        assert_eq!(gso_max_size(1420), 45 * 1368 + 340);
        assert_eq!(gso_max_size(0), 4096);
        assert!(gso_max_size(65_535) <= 65_536);
        assert!(gso_max_size(9000) > 60_000);
    }
}

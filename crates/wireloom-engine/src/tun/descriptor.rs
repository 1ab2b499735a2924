//! What ioctl(2) does with the descriptor of a TUN or TAP interface, which leads to the interface wherever it is.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use wireloom_types::{LinkAddress, PeerLookup};

/// `TUNGETDEVNETNS` of include/uapi/linux/if_tun.h: `_IO('T', 227)`. Linux has it since 5.0.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// The argument of `TUNSETIFF`.
#[derive(Clone, Copy)]
pub(super) struct InterfaceRequest {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_int,
}

impl InterfaceRequest {
    pub(super) fn add_flags(&mut self, flags: libc::c_int) {
        self.flags |= flags;
    }

    pub(super) fn toggle_flags(&mut self, flags: libc::c_int) {
        self.flags ^= flags;
    }

    pub(super) fn with_flags(self, flags: libc::c_int) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// Makes the descriptor a queue of the interface, which is created first if there is none.
    #[expect(unsafe_code, reason = "an ioctl takes the address of its argument")]
    pub(super) fn attach(self, file: &File) -> io::Result<()> {
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: self.flags as libc::c_short };
        let mut request = libc::ifreq { ifr_name: self.name, ifr_ifru };
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq` at the address, which `request` is.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The request for an interface of this name. `None` when no interface can have it (`dev_valid_name` in net/core/dev.c;
/// '%' would make it a pattern).
pub(super) fn interface_request(name: &str, peer_lookup: PeerLookup) -> Option<InterfaceRequest> {
    let bytes = name.as_bytes();
    let forbidden = |byte: &u8| matches!(byte, b'/' | b':' | b'%') || byte.is_ascii_whitespace();
    if bytes.is_empty()
        || bytes.len() >= libc::IFNAMSIZ
        || bytes.iter().any(|byte| forbidden(byte) || *byte == 0)
        || matches!(name, "." | ".." | "all" | "default")
    {
        return None;
    }
    let mut terminated = [0; libc::IFNAMSIZ];
    for (to, from) in terminated.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = match peer_lookup {
        PeerLookup::Destination => libc::IFF_TUN,
        PeerLookup::Gateway => libc::IFF_TAP,
    };
    Some(InterfaceRequest { name: terminated, flags: kind | libc::IFF_NO_PI })
}

/// The interface's name in its network namespace; `None` when it does not exist any more.
pub(super) fn interface_name(file: &File) -> Option<String> {
    let name = present_interface(file)?.ifr_name.map(|byte| byte as u8);
    Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned())
}

/// Whether the interface outlives its descriptors.
pub(super) fn is_persistent(file: &File) -> bool {
    has_flag(file, libc::IFF_PERSIST)
}

/// Whether packets are preceded by a virtio-net header.
pub(super) fn precedes_packets_with_headers(file: &File) -> bool {
    has_flag(file, libc::IFF_VNET_HDR)
}

fn has_flag(file: &File, flag: libc::c_int) -> bool {
    #[expect(unsafe_code, reason = "the request is a C union")]
    // SAFETY: TUNGETIFF succeeded, so that this is the field that was written.
    let flags = present_interface(file).map(|request| unsafe { request.ifr_ifru.ifru_flags });
    flags.is_some_and(|flags| libc::c_int::from(flags) & flag != 0)
}

/// What the kernel says of the interface; `None` when it does not exist any more.
#[expect(unsafe_code, reason = "an ioctl takes the address of its argument")]
fn present_interface(file: &File) -> Option<libc::ifreq> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes one `struct ifreq` at the address, which `request` is.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    (done == 0).then_some(request)
}

/// Sets whether the interface outlives its descriptors.
#[expect(unsafe_code, reason = "neither nix nor the standard library know this ioctl")]
pub(super) fn set_persistent(file: &File, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, libc::c_int::from(persistent)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The link address of a TAP.
pub(super) fn hardware_address(file: &File) -> io::Result<LinkAddress> {
    let mut request = empty_request();
    address_request(file, libc::SIOCGIFHWADDR, &mut request)?;
    #[expect(unsafe_code, reason = "the request is a C union")]
    // SAFETY: SIOCGIFHWADDR succeeded, so that this is the field that was written.
    let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data.map(|byte| byte as u8);
    Ok(LinkAddress::from_bytes([a, b, c, d, e, f]))
}

/// Works in whichever network namespace the interface is: the descriptor leads there.
pub(super) fn set_hardware_address(file: &File, address: LinkAddress) -> io::Result<()> {
    let mut sa_data = [0; 14];
    for (to, from) in sa_data.iter_mut().zip(address.to_bytes()) {
        *to = from as libc::c_char;
    }
    let ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data };
    let mut request = empty_request();
    request.ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_hwaddr };
    address_request(file, libc::SIOCSIFHWADDR, &mut request)
}

fn empty_request() -> libc::ifreq {
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } }
}

#[expect(unsafe_code, reason = "an ioctl takes the address of its argument")]
fn address_request(file: &File, operation: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: SIOCGIFHWADDR and SIOCSIFHWADDR write and read one `struct ifreq` at the address.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), operation, std::ptr::from_mut(request)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The network namespace of the interface.
#[expect(unsafe_code, reason = "neither nix nor the standard library know this ioctl")]
pub(super) fn namespace_of(file: &File) -> io::Result<File> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let namespace = unsafe { libc::ioctl(file.as_raw_fd(), TUNGETDEVNETNS) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface_request(name: &str) -> Option<InterfaceRequest> {
        super::interface_request(name, PeerLookup::Destination)
    }

    #[test]
    fn interface_names_are_validated() {
        for good in ["wg0", "a", "fifteen-bytes-x", "wg0.100", "größe"] {
            assert!(interface_request(good).is_some(), "{good}");
        }
        for bad in ["", "sixteen-bytes-xy", "a b", "a/b", "wg%d", "a:1", ".", "..", "a\0b", "all"] {
            assert!(interface_request(bad).is_none(), "{bad}");
        }
    }
}

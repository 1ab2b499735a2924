//! TUN and TAP interfaces of Linux (Documentation/networking/tuntap.rst).

mod handover;

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    num::NonZero,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Arc, Once},
};

use nix::net::if_::if_nametoindex;
use wireloom_types::{LinkAddress, PeerLookup};

use super::{
    Tun, TunEvent, TunQueue,
    descriptor::{
        InterfaceRequest, hardware_address, interface_request, is_persistent, set_hardware_address,
        set_persistent,
    },
    monitor::InterfaceMonitor,
    offloads::{self, Offload, Offloads},
    place::Place,
    rtnetlink,
};
use crate::{
    offload::{
        coalesce::Joinable,
        virtio::{SegmentationKind, VirtioHeader},
    },
    packet::{ethernet, flow::flow_hash},
};

/// Whether the log says that super-packets are refused: once for all queues.
static SAID: Once = Once::new();

const CLONE_DEVICE: &str = "/dev/net/tun";

/// The MTU of a new interface in bytes, as for every WireGuard: 1500 less 80, which is what IPv6 (40), UDP (8) and a
/// data message (32) add.
const DEFAULT_MTU: usize = 1420;

/// A TUN interface, or a TAP interface in link mode. It lives as long as this value or one of its queues, unless it is
/// persistent ([`Self::set_persistent`]): then it outlives them, with its addresses and routes, for the next one of the
/// same name.
pub(crate) struct LinuxTun {
    writer: LinuxQueue,
    monitor: InterfaceMonitor,
    /// The link address of a TAP.
    link_address: Option<LinkAddress>,
    /// The last known MTU, in bytes.
    mtu: usize,
    /// Whether it was persistent when it left our network namespace.
    persists_here: bool,
}

/// One queue of a [`LinuxTun`].
///
/// The kernel sends the answers to a flow through the queue that the flow was written to (`tun_flow_update` in
/// drivers/net/tun.c). So writes are spread over all queues by flow. Otherwise all answers to a peer, whose datagrams
/// arrive at one socket, would be read by one thread.
#[derive(Clone)]
pub(crate) struct LinuxQueue {
    queues: Arc<[File]>,
    own: usize,
    offloads: Offloads,
    /// The length in bytes of the Ethernet header before the IP packet.
    ethernet_len: usize,
}

/// Why the interface could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenTunError {
    /// The name is not one that an interface can have.
    #[error("{0:?} is not an interface name: use 1 to 15 bytes without white space, '/', ':' or '%'")]
    BadName(String),
    /// The kernel has no TUN devices, or this process has no access to them.
    #[error(
        "cannot open {CLONE_DEVICE}: {0}; load the module with `modprobe tun`, or give the container that device"
    )]
    NoTunSupport(io::Error),
    /// This process may not create interfaces.
    #[error("not allowed to create the interface {0}: run as root (CAP_NET_ADMIN is needed)")]
    NotPermitted(String),
    /// There is another interface of this name.
    #[error("the interface {0} exists already: choose another name, or end the program that made it")]
    NameTaken(String),
    /// Super-packets were asked for, and the kernel has none for such interfaces.
    #[error(
        "the kernel cannot give the interface {0} super-packets (IFF_VNET_HDR, TUNSETOFFLOAD): use --offload auto"
    )]
    NoOffload(String),
    /// The kernel refused for another reason.
    #[error("cannot set up the interface {name}: {cause}")]
    Failed {
        /// The interface's name.
        name: String,
        /// The kernel's error.
        cause: io::Error,
    },
}

impl LinuxTun {
    /// Creates the interface `name`, down, with an MTU of 1420 bytes; or takes over the persistent interface of that
    /// name as it is, if an earlier process left one. Returns the interface and its queues: `queues` of them, or just
    /// one if the interface that was left cannot have more.
    ///
    /// # Errors
    /// [`OpenTunError`]; nothing is left behind then.
    pub(crate) fn open(
        name: &str,
        peer_lookup: PeerLookup,
        queues: NonZero<usize>,
        offload: Offload,
    ) -> Result<(Self, Vec<LinuxQueue>), OpenTunError> {
        let failed = |cause| OpenTunError::Failed { name: name.into(), cause };
        let mut request =
            interface_request(name, peer_lookup).ok_or_else(|| OpenTunError::BadName(name.into()))?;
        let left = rtnetlink::was_left(name).map_err(failed)?;
        let file = open_clone_device(name)?;
        let headers = offload != Offload::Off && offloads::has_headers(&file);
        if headers {
            request.add_flags(libc::IFF_VNET_HDR);
        }
        if queues.get() > 1 {
            request.add_flags(libc::IFF_MULTI_QUEUE);
        }
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM) => OpenTunError::NotPermitted(name.into()),
            // EINVAL: the interface exists and is of another kind.
            Some(libc::EBUSY | libc::EINVAL) => OpenTunError::NameTaken(name.into()),
            _ => failed(error),
        };
        let queues = if left {
            attach_to_left(&file, &mut request, name, queues).map_err(refused)?
        } else {
            // IFF_TUN_EXCL: fail if the interface exists, instead of attaching to it.
            request.with_flags(libc::IFF_TUN_EXCL).attach(&file).map_err(refused)?;
            queues
        };
        let mut files = vec![file];
        for _ in 1..queues.get() {
            let file = open_clone_device(name)?;
            request.attach(&file).map_err(refused)?;
            files.push(file);
        }
        let file = &files[0];
        let index = if_nametoindex(name).map_err(|error| failed(error.into()))?;
        let link_address = match peer_lookup {
            PeerLookup::Destination => {
                if !left {
                    rtnetlink::set_up_tun(index, DEFAULT_MTU).map_err(failed)?;
                }
                None
            }
            PeerLookup::Gateway => {
                if !left {
                    rtnetlink::set_up_tap(index, name, DEFAULT_MTU).map_err(failed)?;
                }
                Some(hardware_address(file).map_err(failed)?)
            }
        };
        let monitor = InterfaceMonitor::open(index).map_err(failed)?;
        let offloads = if headers { offloads::enable(file) } else { offloads::disable(file) };
        if offload == Offload::On && !offloads.joinable.tcp {
            return Err(OpenTunError::NoOffload(name.into()));
        }
        let ethernet_len = link_address.map_or(0, |_| ethernet::HEADER_LEN);
        let files: Arc<[File]> = files.into();
        let queues: Vec<_> = (0..files.len())
            .map(|own| LinuxQueue { queues: Arc::clone(&files), own, offloads, ethernet_len })
            .collect();
        // The first event is the present state.
        let writer = queues[0].clone();
        let tun = Self { writer, monitor, link_address, mtu: DEFAULT_MTU, persists_here: false };
        tun.bound_super_packets();
        Ok((tun, queues))
    }

    fn file(&self) -> &File {
        self.writer.file()
    }

    /// Sets whether the interface outlives this value. A new one does not; one that was left does.
    ///
    /// A persistent interface is marked as ours: only such a one is taken over.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        if let (true, Some(Place { namespace: None, index })) = (persistent, self.monitor.place()) {
            rtnetlink::mark_as_ours(index)?;
        }
        set_persistent(self.file(), persistent)
    }

    /// Bounds super-packets so that their messages fit one send.
    fn bound_super_packets(&self) {
        if self.writer.offloads.joinable.tcp
            && let Some(Place { namespace: None, index }) = self.monitor.place()
            && let Err(error) = rtnetlink::set_gso_max_size(index, offloads::gso_max_size(self.mtu))
        {
            tracing::debug!("cannot bound the length of super-packets: {error}");
        }
    }

    /// Readable when [`Tun::poll_event`] has an event.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

impl LinuxQueue {
    fn file(&self) -> &File {
        &self.queues[self.own]
    }

    /// Readable when [`TunQueue::receive`] has a packet.
    pub(crate) fn packets(&self) -> BorrowedFd<'_> {
        self.file().as_fd()
    }

    /// The queue for the flow of this packet.
    fn queue_of(&self, parts: &[IoSlice<'_>]) -> &File {
        if self.queues.len() == 1 {
            return self.file();
        }
        // The Ethernet header is a part of its own, or the start of the packet's.
        let mut skip = self.ethernet_len;
        let packet = parts.iter().skip(1).find_map(|part| {
            let packet = part.get(skip..).filter(|packet| !packet.is_empty());
            skip = skip.saturating_sub(part.len());
            packet
        });
        let hash = flow_hash(packet.unwrap_or_default());
        &self.queues[(hash % self.queues.len() as u64) as usize]
    }
}

impl TunQueue for LinuxQueue {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
        let mut file = self.file();
        if !self.offloads.headers {
            return Ok((VirtioHeader::default(), file.read(buffer)?));
        }
        let mut header = [0; VirtioHeader::LEN];
        let len = file.read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        let header = VirtioHeader::parse(&header).filter(|_| len >= VirtioHeader::LEN);
        header.map(|header| (header, len - VirtioHeader::LEN)).ok_or(io::ErrorKind::InvalidData.into())
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut file = self.queue_of(parts);
        let parts = if self.offloads.headers { parts } else { &parts[1..] };
        file.write_vectored(parts).map(drop)
    }

    fn joinable(&self) -> Joinable {
        self.offloads.joinable
    }

    fn stop_joining(&mut self, kind: SegmentationKind) {
        self.offloads.joinable.remove(kind);
        SAID.call_once(|| {
            tracing::warn!(
                "the kernel refuses super-packets that it said it takes ({kind:?}); packets are written singly from \
                 now on, which takes more of the processor"
            );
        });
    }
}

impl Tun for LinuxTun {
    type Queue = LinuxQueue;

    fn writer(&self) -> LinuxQueue {
        self.writer.clone()
    }

    fn link_address(&self) -> Option<LinkAddress> {
        self.link_address
    }

    fn set_link_address(&mut self, address: LinkAddress) -> io::Result<()> {
        let before = hardware_address(self.file())?;
        if before != address {
            set_hardware_address(self.file(), address)?;
            // The kernel keeps the link-local address that it derived from the old one.
            if let Some(Place { namespace: None, index }) = self.monitor.place() {
                rtnetlink::replace_link_local(index, before.link_local(), address.link_local());
            }
        }
        self.link_address = Some(address);
        Ok(())
    }

    fn poll_event(&mut self) -> io::Result<Option<TunEvent>> {
        let was_here = self.monitor.is_here();
        let event = self.monitor.poll(self.writer.file(), self.mtu)?;
        if self.monitor.is_here() != was_here {
            self.adapt_persistence();
        }
        if let Some(TunEvent::State(state)) = event
            && state.mtu != self.mtu
        {
            self.mtu = state.mtu;
            self.bound_super_packets();
        }
        Ok(event)
    }
}

impl LinuxTun {
    /// While the interface is in another network namespace, as <https://www.wireguard.com/netns/> proposes, it goes
    /// with this value: the next process of the name looks for it in ours, and would make a second one.
    fn adapt_persistence(&mut self) {
        let file = self.writer.file();
        let adapted = if self.monitor.is_here() {
            if std::mem::take(&mut self.persists_here) { set_persistent(file, true) } else { Ok(()) }
        } else {
            self.persists_here |= is_persistent(file);
            set_persistent(file, false)
        };
        if let Err(error) = adapted {
            tracing::warn!("cannot change whether the interface outlives this process: {error}");
        }
    }
}

/// Attaches to the interface that an earlier process left, and adapts the request to it: whether an interface can have
/// several queues was decided when it was created. Returns how many queues it gets.
fn attach_to_left(
    file: &File,
    request: &mut InterfaceRequest,
    name: &str,
    queues: NonZero<usize>,
) -> io::Result<NonZero<usize>> {
    match request.attach(file) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        attached => return attached.map(|()| queues),
    }
    request.toggle_flags(libc::IFF_MULTI_QUEUE);
    request.attach(file)?;
    if queues.get() > 1 {
        tracing::warn!(
            "the interface {name} was left by a process with one thread, so one thread carries its packets; \
             for more, stop this process, delete the interface (`ip link delete {name}`) and start again"
        );
    }
    Ok(NonZero::<usize>::MIN)
}

fn open_clone_device(name: &str) -> Result<File, OpenTunError> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CLONE_DEVICE).map_err(
        |error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenTunError::NotPermitted(name.into()),
            _ => OpenTunError::NoTunSupport(error),
        },
    )
}

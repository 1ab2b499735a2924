//! The program with real packets, in network namespaces that each test makes for itself.
//!
//! | module | proves |
//! |---|---|
//! | [`laboratory`] | that the laboratory measures what it claims to, and leaves nothing behind |
//! | `laboratory::flows` | that the flow table measures what it claims to, with the rules of a kube-proxy |
//! | [`demo`] | that `wireloom-demo` keeps its promises, for root and for others, and with `--keep` |
//! | **[`agent`]** | **the agent on the nodes of a mesh:** |
//! | [`agent::matrix`] | who reaches whom in each mode, encrypted or not, and what a switch of the mode costs |
//! | [`agent::rules`] | that the policy rules, as iproute2 prints them, follow pools, scope and mode |
//! | [`agent::membership`] | that the mesh follows its file: keys, endpoints, nodes, borrowed addresses, mistakes |
//! | `agent::endpoints` | that an endpoint by name is looked up, again while its peer does not answer |
//! | `agent::preshared` | that the preshared key's file is followed, and that there is no peer without it |
//! | `agent::upkeep` | that the agent repairs what others break, and takes settings while it runs |
//! | `agent::mtu` | that packets are as long as the path to each peer carries, with and without ICMP |
//! | `agent::repair` | how soon repairs are made, and what becomes of a device that hangs or an interface that moves |
//! | [`agent::restart`] | that an agent's end costs no packet, and `down` leaves nothing behind |
//! | `agent::instances` | that one agent takes over from another, and who serves when either dies |
//! | [`agent::survival`] | that the interface outlives its device, and nothing leaves in plaintext meanwhile |
//! | [`agent::upgrade`] | that an unscoped rule is replaced in the right order, and others' objects stay |
//! | [`agent::ownership`] | that the table of another program is refused, and nothing of others is touched |
//! | `agent::borrowed` | that the address of another block that a pod has is found, published and encrypted |
//! | `agent::felix` | that it works beside Calico's Felix |
//! | `agent::migration` | what it costs to move from Felix's WireGuard, node by node, and back |
//! | `agent::guard` | that nothing leaves or enters in plaintext, whatever disturbs routes, firewall, agent or device |
//! | `agent::broken` | what `wireloom status` says of broken states, how soon, and that it is true |
//! | `agent::host_mode` | that host mode locks nobody out: exempt addresses, warnings, the way there and back |
//! | `agent::records` | that damaged records in the state directory stop neither agent nor `down` |
//! | `agent::reports` | what `plan` and `status` print, for people and as JSON |
//! | `agent::stores` | that a mesh comes together in etcd, outlives its outage, and is left without loss |
//! | `agent::metrics` | that Prometheus reads the metrics, and that every query and alert in deploy/ works |
//! | `agent::trouble` | what the agent says when it cannot do its work |
//! | [`boot_guard`] | that the boot unit brings the guard back, and `down` removes it |
//! | **[`device`]** | **the userspace interface by itself:** |
//! | `device::lifecycle` | how it starts and ends, and what it refuses |
//! | `device::configuration` | how `wg`, the control socket and keys configure it |
//! | `device::packets` | which datagrams it sends, from where, and which it drops |
//! | `device::netns` | what the kernel's own self-test asks beyond the others: NAT, tunnels in tunnels, long lists |
//! | `device::path_mtu` | that transfers need no fragments where ICMP passes, and go on in fragments where not |
//! | `device::supervisor` | that a supervised device is started again when it or its supervisor dies, or ends |
//! | `device::handover` | that a hand-over to a new process is noticed by nobody, whoever dies or hangs meanwhile |
//! | `device::threads` | that it does the same with several threads |
//! | `device::timestamps` | that a restart after the clock was set back silences nobody |
//! | `device::data_path` | that bytes arrive whole, in valid packets, over good networks and bad ones |
//! | [`interop`] | the userspace interface with wireguard-go or the kernel's WireGuard at the other end |
//! | **[`link`]** | **link mode, with peers as neighbours:** |
//! | `link::device` | the userspace interface as a link: neighbours, multicast, standard peers, restart |
//! | `link::next_hops` | that the next hop that routing chose is the peer: gateways, ECMP, fail-over, no redirects |
//! | `link::errors` | that senders hear of errors in milliseconds, of addresses that move, of path MTUs |
//! | `link::routing` | BIRD, FRR and babeld on a common link, with the configurations of docs/link-mode.md |
//! | `link::agent` | the matrix, the modes and the repairs of the agent on a link |
//! | `link::firewall` | that a peer sends from its own addresses and from no other, as the agent's firewall checks |
//! | `link::mesh` | the tests of [`agent`] once more, on a link |
//! | **[`kernel`]** | **the agent's work on the kernel:** |
//! | `kernel::roundtrip` | that the kernel gives back what was written |
//! | `kernel::twin` | that the planner's twin of the kernel does what the kernel does |
//! | `kernel::backend` | the kernel's WireGuard as the agents' back end (feature `kernel-wireguard`) |
//! | `kernel::fleets` | fleets on it: mixed, damaged, large (feature `kernel-wireguard`) |
//! | `kernel::instances` | that agents come and go, and it is left alone (feature `kernel-wireguard`) |
//!
//! [`fixtures`] is what they are built with. No wait in them is without a bound and a message: a program that hangs,
//! or dies, fails its test.
//!
//! `cargo test --features functional` runs them, as root or not: a test binary that may not make namespaces starts
//! itself again in a user namespace. The feature `slow` adds the tests that need minutes. They need Debian's
//! `iproute2`, `iputils-ping`, `nftables`, `util-linux`, `procps`, `ethtool`, `tcpdump`, `wireguard-tools`,
//! `wireguard-go`, `bird2`, `frr`, `babeld`, `etcd-server` and `prometheus`; a test without its program fails, and
//! names it. Tests of the feature `kernel-wireguard` need a kernel that has WireGuard: they run in the virtual machine
//! of `tests/vm`, as some of the others do once more.

mod agent;
mod boot_guard;
mod demo;
mod device;
mod fixtures;
mod interop;
mod kernel;
mod laboratory;
mod link;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The program under test.
fn wireloom() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wireloom"))
}

/// A program of the laboratory, beside `wireloom`. It belongs to another package, so cargo does not build it for these
/// tests: they do, with the dependencies of the whole workspace, which are compiled already. Without cargo it must be
/// there.
fn laboratory_program(name: &str) -> PathBuf {
    if let Some(cargo) = env::var_os("CARGO") {
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "--workspace", "--bin", name])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(built.success(), "cargo cannot build {name}: {built}");
    }
    let program = wireloom().with_file_name(name);
    assert!(
        program.is_file(),
        "{} is missing: `cargo build --package wireloom-lab` makes it",
        program.display()
    );
    program
}

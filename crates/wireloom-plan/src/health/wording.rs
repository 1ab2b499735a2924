//! The texts of findings: what, where, why, and the fix.

use std::fmt;

use super::{DroppingChain, Finding, Hook, MarkUser};
use crate::{routing::Family, settings::HostTransition};

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingProgrammed => f.write_str(
                "nothing of Wireloom is programmed on this machine; start the agent (`systemctl start wireloom`), or \
                 see why it ended (`journalctl -u wireloom`)",
            ),
            Self::AgentNotRunning => f.write_str(
                "the agent does not run: nothing is repaired, and no change of the mesh is followed; start it \
                 (`systemctl start wireloom`), or see why it ended (`journalctl -u wireloom`)",
            ),
            Self::AgentStuck { seconds } => write!(
                f,
                "the agent runs and has not looked at the kernel for {seconds} s; see its log, and restart it",
            ),
            Self::InterfaceMissing { interface } => write!(
                f,
                "interface {interface} does not exist; a running agent makes it anew: see its log if it stays away",
            ),
            Self::InterfaceDown { interface } => write!(
                f,
                "interface {interface} is down; a running agent sets it up again (or run `ip link set {interface} up`)",
            ),
            Self::DeviceAbsent { interface } => write!(
                f,
                "no WireGuard device is behind interface {interface}, so what is to be encrypted is dropped; a \
                 running agent starts one: see its log if that fails",
            ),
            Self::DeviceSilent { seconds } => write!(
                f,
                "the WireGuard device has not answered for {seconds} s, so nothing passes the tunnel; the agent ends \
                 and restarts it after 15 s",
            ),
            Self::RulesMissing { rule, count } => write!(
                f,
                "{} missing, such as `{rule}` ({}), so traffic between workloads does not reach the tunnel; a \
                 running agent puts rules back at once: see its log if they stay away",
                if *count == 1 { "a rule of ours is".to_owned() } else { format!("{count} rules of ours are") },
                rule.family,
            ),
            Self::RoutesMissing { table, destination, count } => write!(
                f,
                "{} missing from our table {table}, such as that to {destination}, so packets to there do not reach \
                 the tunnel; a running agent puts routes back at once: start it (`systemctl start wireloom`), or see \
                 its log if they stay away",
                if *count == 1 { "a route of ours is".to_owned() } else { format!("{count} routes of ours are") },
            ),
            Self::GuardMissing => f.write_str(
                "the guard is not in force: the nftables table `inet wireloom` is missing or was changed, so what \
                 routing leads past the tunnel leaves in plaintext; a running agent makes the table anew: see its \
                 log if it stays away",
            ),
            Self::ForeignRule { rule, workload, sometimes, refused } => write!(
                f,
                "the {} rule `{rule}` is not ours and comes before ours: {} from {workload} past the tunnel, where {}; \
                 delete it (`ip {}rule delete priority {}`), or move it behind ours",
                rule.rule.family,
                if *sometimes { "it may take packets" } else { "it takes packets" },
                if *refused { "the guard refuses them" } else { "they go in plaintext" },
                match rule.rule.family {
                    Family::V4 => "",
                    Family::V6 => "-6 ",
                },
                rule.rule.priority,
            ),
            Self::ForwardingOff { family } => {
                let sysctl = match family {
                    Family::V4 => "net.ipv4.ip_forward",
                    Family::V6 => "net.ipv6.conf.all.forwarding",
                };
                write!(
                    f,
                    "this machine does not forward {family}, so packets of its workloads neither leave nor arrive; run \
                     `sysctl -w {sysctl}=1`, and write it to /etc/sysctl.d",
                )
            }
            Self::Dropper { chain, port, interface } => match chain.hook {
                Hook::Input => write!(
                    f,
                    "the {chain} drops what it does not accept, and no peer has a session: it may drop encrypted \
                     packets; accept UDP port {port} there",
                ),
                Hook::Forward => write!(
                    f,
                    "the {chain} drops what it does not accept: unless it accepts them, packets between workloads die \
                     there; accept what comes in or goes out by {interface}",
                ),
            },
            Self::NeverAnswered { node, endpoint, public_key, seconds } => {
                write!(f, "{node} has never answered")?;
                endpoint.map_or(Ok(()), |endpoint| write!(f, " at {endpoint}"))?;
                seconds.map_or(Ok(()), |seconds| write!(f, ", asked for {} now", span(seconds)))?;
                write!(f, ": on {node}, see that the agent runs")?;
                if let Some(key) = public_key {
                    write!(f, " and that `wireloom key public` prints {key}")?;
                }
                match endpoint {
                    Some(endpoint) => write!(
                        f,
                        "; then see that this endpoint is right, and that UDP port {} is let through there and back",
                        endpoint.port(),
                    ),
                    None => f.write_str("; then see that UDP is let through there and back"),
                }
            }
            Self::Silent { node, endpoint, seconds } => {
                write!(f, "{node} is silent: for {} now nothing has answered what is sent to it", span(*seconds))?;
                endpoint.map_or(Ok(()), |endpoint| write!(f, " at {endpoint}"))?;
                write!(
                    f,
                    "; see `wireloom status` on {node}: whether it runs, and has this node's key and endpoint; then \
                     see that UDP is let through there and back",
                )
            }
            Self::EndpointThroughTunnel { node, endpoint, interface } => write!(
                f,
                "the way to {node}'s endpoint {endpoint} leads into {interface} itself, so nothing reaches it: a route \
                 to {} out of {interface} was added or learnt; keep the underlay's prefixes out of what is routed over \
                 the link",
                endpoint.ip(),
            ),
            Self::NoRouteToEndpoint { node, endpoint } => write!(
                f,
                "this machine has no route to {node}'s endpoint {endpoint}; add one, or correct the endpoint in the \
                 mesh",
            ),
            Self::MtuTooLarge { mtu, interface, carries } => write!(
                f,
                "mtu = {mtu} in agent.toml is more than the way to peers by {interface} carries, so encrypted packets \
                 are fragmented or lost; set mtu = {carries}, or remove the setting",
            ),
            Self::SourceNotAllowed { packets } => write!(
                f,
                "in the last minute {packets} packets came through the tunnel from addresses that their sender does \
                 not have in the mesh (source-not-allowed), and were dropped: either host mode \
                 (encrypt_host_traffic) is on at one end only, or the other end reads another mesh than this node; \
                 compare `agent.toml` and the mesh on both",
            ),
            Self::UnknownPeer { packets } => write!(
                f,
                "in the last minute {packets} handshakes came from a key that no node of this mesh has \
                 (unknown-peer): a node has another key than the mesh says, or this node's mesh lacks it; compare \
                 `wireloom key public` on the nodes that do not answer with their keys in the mesh",
            ),
            Self::BadMac1 { packets, public_key } => {
                write!(
                    f,
                    "in the last minute {packets} handshakes came that are not meant for this node's key (bad-mac1): \
                     somebody believes that it has another key; ",
                )?;
                match public_key {
                    Some(key) => write!(f, "the key is {key} (`wireloom key public`)")?,
                    None => f.write_str("`wireloom key public` prints the key")?,
                }
                f.write_str("; compare it with this node's key in the mesh of the nodes that do not answer")
            }
            Self::StaleTimestamp { packets } => write!(
                f,
                "in the last minute {packets} handshakes of a peer were older than an earlier one (stale-timestamp), \
                 and were refused as replays: the clock of a node that does not answer was set back, or two nodes use \
                 one private key; set its clock, or generate a new key there",
            ),
            Self::ClockSetBack { seconds } => write!(
                f,
                "this machine's clock was set back by {} or more: the last handshake is in its future, and peers \
                 refuse our handshakes as replays until that time has come; set the clock, or, if it is right now, \
                 generate a new key for this node",
                span(*seconds),
            ),
            Self::NoRouteToWorkloads { workload, node, count, unproven } => {
                write!(f, "the table `main` has no route to {workload} of {node}")?;
                if let Some(more @ 1..) = count.checked_sub(1) {
                    write!(f, " and {more} more workload CIDRs")?;
                }
                f.write_str(", so traffic in plaintext with it has no way: that of hosts")?;
                if *unproven {
                    f.write_str(", and everything until a node is proven")?;
                }
                write!(f, "; let the network plugin add it, or run `ip route add {workload} via` {node}'s address")
            }
            Self::LocalWorkloadWithoutRoute { workload } => write!(
                f,
                "the table `main` has no route to the local workloads {workload}, so nothing that arrives for them is \
                 delivered; that is so until the network plugin has started a first workload, otherwise correct this \
                 node's `workloads`",
            ),
            Self::MarkCollision { mark, user } => write!(
                f,
                "our mark {mark:#x} shares bits with the marks of {user} ({:#x}), which runs here: packets that it \
                 marks miss our rules; set [routing] fwmark in agent.toml to bits that nothing else uses",
                user.bits(),
            ),
            Self::HostTransition { step: HostTransition::Accept } => f.write_str(
                "encrypt_host_traffic = \"accept\" is a step on the way to host mode: this node sends the hosts' own \
                 traffic in plaintext, and takes it encrypted and in plaintext; set \"prefer\" when every node has \
                 \"accept\"",
            ),
            Self::HostTransition { step: HostTransition::Prefer } => f.write_str(
                "encrypt_host_traffic = \"prefer\" is a step on the way to host mode: this node sends the hosts' own \
                 traffic encrypted, and still takes it in plaintext; set true when every node has \"prefer\"",
            ),
            Self::NetworkdRemovesRules => f.write_str(
                "systemd-networkd runs here and removes rules that it does not know whenever it starts; the agent puts \
                 ours back; to keep it from that, write ManageForeignRoutingPolicyRules=no in the section [Network] of \
                 /etc/systemd/networkd.conf",
            ),
        }
    }
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, hook } = self;
        let hook = match hook {
            Hook::Input => "input",
            Hook::Forward => "forward",
        };
        write!(f, "nftables chain `{chain}` of table `{family} {table}` (hook {hook})")
    }
}

impl fmt::Display for MarkUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KubeProxy => "kube-proxy",
            Self::Calico => "Calico",
            Self::Cilium => "Cilium",
        })
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

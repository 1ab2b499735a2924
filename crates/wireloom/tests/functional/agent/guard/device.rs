//! The device stops, dies, or loses its interface, while the agent lives or is dead: packets are lost, not leaked.

use wireloom_lab::Node;

use super::{Mode, Watched, delete_rules, device, is_userspace, kill_agent, start_agent};

/// What is done to a device or its interface.
struct Harm {
    name: &'static str,
    /// The kernel's WireGuard has no process.
    needs_process: bool,
    harm: fn(&Node),
    undo: fn(&Node),
}

fn signal(node: &Node, name: &str) {
    let device = device(node).expect("a device process");
    node.run(&format!("kill -{name} {device}")).unwrap();
}

fn run(node: &Node, lines: &[&str]) {
    lines.iter().for_each(|line| drop(node.run(line).unwrap()));
}

const HARMS: [Harm; 7] = [
    Harm {
        name: "device stopped (SIGSTOP), rule 99 deleted",
        needs_process: true,
        harm: |node| {
            signal(node, "STOP");
            delete_rules(node);
        },
        undo: |node| signal(node, "CONT"),
    },
    Harm {
        name: "device killed (SIGKILL)",
        needs_process: true,
        harm: |node| signal(node, "KILL"),
        undo: |_| {},
    },
    Harm {
        name: "device ended (SIGTERM)",
        needs_process: true,
        harm: |node| signal(node, "TERM"),
        undo: |_| {},
    },
    Harm {
        name: "wg0 deleted",
        needs_process: false,
        harm: |node| run(node, &["ip link del wg0"]),
        undo: |_| {},
    },
    Harm {
        name: "wg0 set down",
        needs_process: false,
        harm: |node| run(node, &["ip link set wg0 down"]),
        undo: |_| {},
    },
    Harm {
        name: "wg0 renamed",
        needs_process: false,
        harm: |node| run(node, &["ip link set wg0 down", "ip link set wg0 name wg7", "ip link set wg7 up"]),
        undo: |node| drop(node.run("ip link del wg7")),
    },
    Harm {
        name: "wg0 moved to another namespace",
        needs_process: false,
        harm: |node| run(node, &["ip netns add elsewhere", "ip link set wg0 netns elsewhere"]),
        undo: |node| run(node, &["ip netns del elsewhere"]),
    },
];

fn nothing_leaks_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    for Harm { name, harm, undo, .. } in HARMS.iter().filter(|harm| is_userspace() || !harm.needs_process) {
        watched.case(
            &format!("{name}, agent alive"),
            |fleet| harm(&fleet.lab.nodes[0]),
            |fleet, ()| undo(&fleet.lab.nodes[0]),
        );
        watched.case(
            &format!("{name}, agent dead"),
            |fleet| {
                kill_agent(fleet, 0);
                harm(&fleet.lab.nodes[0]);
            },
            |fleet, ()| {
                undo(&fleet.lab.nodes[0]);
                start_agent(fleet, 0);
            },
        );
    }
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn what_happens_to_the_device_leaks_nothing_in_scoped_mode() {
    nothing_leaks_in(Mode::Scoped);
}

#[test]
fn what_happens_to_the_device_leaks_nothing_in_host_mode() {
    nothing_leaks_in(Mode::Host);
}

#[test]
fn what_happens_to_the_device_leaks_nothing_with_reject() {
    nothing_leaks_in(Mode::Reject);
}

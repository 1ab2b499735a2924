//! A laboratory whose nodes run the agent.

use std::{cell::Cell, fmt::Write as _};

use wireloom_lab::{
    Lab, Layout, Matrix, Node, PATIENCE, Promise,
    agent::{self, Agent},
    mesh::{KeyPair, Mesh, write_key, write_settings},
    until,
};

use crate::wireloom;

thread_local! {
    /// What the settings of this thread's fleets say besides `[routing]`.
    static MORE_SETTINGS: Cell<&'static str> = const { Cell::new("") };
}

/// Runs a test, all of whose fleets have these lines in their settings as well.
pub(crate) fn with_more_settings(lines: &'static str, test: impl FnOnce()) {
    MORE_SETTINGS.set(lines);
    test();
}

/// The settings' `[routing]` section has these lines, and others may follow it.
fn write(node: &Node, routing: &str) {
    write_settings(node, &format!("{routing}\n\n{}", MORE_SETTINGS.get())).unwrap();
}

/// Nodes that run the agent, and the files that it reads.
pub(crate) struct Fleet {
    pub(crate) lab: Lab,
    /// As written on every node.
    pub(crate) mesh: Mesh,
    pub(crate) keys: Vec<KeyPair>,
    /// One each node, in the same order.
    pub(crate) agents: Vec<Agent>,
}

impl Fleet {
    /// Builds a laboratory and writes the files on its nodes: these lines are the `[routing]` section.
    pub(crate) fn without_agents(layout: Layout, routing: &str) -> Self {
        let lab = Lab::new(&layout).unwrap();
        let keys: Vec<_> =
            lab.nodes.iter().map(|node| KeyPair::generate(wireloom(), node).unwrap()).collect();
        let mesh = Mesh::of(&lab, &keys);
        mesh.write(&lab).unwrap();
        for (node, key) in lab.nodes.iter().zip(&keys) {
            write_key(node, key).unwrap();
            write(node, routing);
        }
        Self { lab, mesh, keys, agents: Vec::new() }
    }

    /// The same, and starts an agent on every node.
    pub(crate) fn new(layout: Layout, routing: &str) -> Self {
        let mut fleet = Self::without_agents(layout, routing);
        fleet.start();
        fleet
    }

    /// Starts an agent on every node.
    pub(crate) fn start(&mut self) {
        self.agents = self.lab.nodes.iter().map(|node| Agent::start(wireloom(), node).unwrap()).collect();
    }

    /// Waits until every cell of the behaviour matrix is as promised.
    #[track_caller]
    pub(crate) fn settle(&self, promise: Promise) {
        let matrix = Matrix::settle(&self.lab, promise, PATIENCE).unwrap();
        let broken = matrix.broken(promise);
        assert!(broken.is_empty(), "{}\n{}", broken.join("\n"), self.logs());
    }

    /// Waits until a condition holds, which is named for when it does not.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let result = until(PATIENCE, what, || condition(self).then_some(()));
        assert!(result.is_ok(), "{}\n{}", result.unwrap_err(), self.logs());
    }

    /// Waits until the kernel has noticed that every cable is plugged in (within a second or two): links
    /// and routes show it.
    pub(crate) fn wait_for_cables(&self) {
        let lines = ["ip -o link show up", "ip -4 route show table all", "ip -6 route show table all"];
        self.wait("every cable to be up", |fleet| {
            fleet.lab.nodes.iter().all(|node| {
                let shown = lines.map(|line| node.run(line).unwrap()).concat();
                !shown.contains("NO-CARRIER") && !shown.contains("linkdown")
            })
        });
    }

    /// Changes the mesh file on every node.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Mesh)) {
        change(&mut self.mesh);
        self.mesh.write(&self.lab).unwrap();
    }

    /// Changes the settings' `[routing]` section on every node.
    pub(crate) fn route(&self, routing: &str) {
        self.lab.nodes.iter().for_each(|node| write(node, routing));
    }

    /// What the agents had to say, for a failed test's message.
    fn logs(&self) -> String {
        self.lab.nodes.iter().fold(String::new(), |mut logs, node| {
            let log = agent::log(node).unwrap_or_default();
            let _ = write!(logs, "\n== {}\n{log}", node.name);
            logs
        })
    }
}

/// The rules at priority 99 as iproute2 prints them, IPv4 first, without priority and protocol.
pub(crate) fn rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for family in ["-4", "-6"] {
        let shown = node.run(&format!("ip {family} rule show pref 99")).unwrap();
        rules.extend(shown.lines().map(|line| {
            let rule = line.trim_start_matches("99:").trim();
            rule.trim_end_matches(" proto 157").to_owned()
        }));
    }
    rules
}

/// Runs `wireloom` with these words on a node: exit status and both streams.
pub(crate) fn run(node: &Node, words: &str) -> (i32, String, String) {
    let mut command = std::process::Command::new(wireloom());
    let output = node.host.space.output(command.args(words.split_whitespace()).env("NO_COLOR", "1")).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

//! What the kernel announces about rules, in its order.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
};

use wireloom_lab::{Node, PATIENCE, Space, until};

/// Where `ip monitor` writes to.
const LOG: &str = "/run/monitor.log";

/// `ip monitor rule` on a node.
pub(crate) struct RuleMonitor {
    space: Space,
    process: Child,
    marks: u32,
}

impl RuleMonitor {
    /// Returns when it listens.
    pub(crate) fn start(node: &Node) -> Self {
        let space = node.host.space.clone();
        let log = space.inside(|| File::create(LOG).unwrap()).unwrap();
        let mut command = Command::new("ip");
        command.args(["monitor", "rule"]).stdin(Stdio::null()).stdout(log);
        let process = space.spawn(&mut command).unwrap();
        let mut monitor = Self { space, process, marks: 0 };
        monitor.mark();
        monitor
    }

    /// What has been announced so far, without our own marks.
    pub(crate) fn seen(&mut self) -> String {
        self.mark();
        let announced = self.space.read(LOG).unwrap().unwrap();
        announced
            .lines()
            .filter(|line| !line.contains("lookup 4242"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Adds and removes a rule of our own until it is announced: so is, then, all that came before.
    fn mark(&mut self) {
        self.marks += 1;
        let priority = 31_000 + self.marks;
        until(PATIENCE, "ip monitor to announce a rule", || {
            for action in ["add", "del"] {
                self.space.run(&format!("ip rule {action} pref {priority} lookup 4242")).unwrap();
            }
            let announced = self.space.read(LOG).unwrap().unwrap();
            announced.contains(&format!("Deleted {priority}:")).then_some(())
        })
        .unwrap();
    }
}

impl Drop for RuleMonitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

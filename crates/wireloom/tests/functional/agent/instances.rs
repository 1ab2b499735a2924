//! Two agents on a node: one takes over from the other, and who serves when either dies.

use std::{
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wireloom_kernel::{
    serving,
    supervisor::{State, Status, Supervisor},
};
use wireloom_lab::{FAMILIES, Layout, Nonces, PATIENCE, Pinger, Promise, Stream, agent::Agent, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// Starts an agent on the first node that takes over, with a directory of this name for its instance.
fn arrives(fleet: &Fleet, name: &str) -> Agent {
    Agent::take_over(wireloom(), &fleet.lab.nodes[0], &directory(name), false).unwrap()
}

fn directory(name: &str) -> String {
    format!("/run/instances/{name}")
}

/// What the probes of this instance say.
pub(crate) fn health(fleet: &Fleet, name: &str, question: &str) -> String {
    let program = wireloom().display();
    let line = format!("env WIRELOOM_INSTANCE={} {program} health {question}", directory(name));
    fleet.lab.nodes[0].run(&line).unwrap_or_else(|error| error.to_string())
}

/// Waits until an agent serves the first node, and its probe says so.
pub(crate) fn serves(fleet: &Fleet, agent: &Agent, name: &str) {
    fleet.wait_for_report(&fleet.lab.nodes[0], agent);
    fleet.wait(&format!("{name} to be ready"), |fleet| health(fleet, name, "ready") == "ok\n");
}

#[test]
pub(crate) fn one_agent_takes_over_from_another_and_back_when_it_dies() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.agents.push(arrives(&fleet, "old"));
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    // What an agent programs for some time after a proof would change its files.
    fleet.wait_for_proofs();
    fleet.wait_for_usual_keepalives(node);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let pinger = Pinger::start(&a.pods[0], &b.pods[0], Family::V6, Duration::from_millis(10)).unwrap();
    let old = &fleet.agents[0];
    serves(&fleet, old, "old");

    // One that cannot serve touches nothing, and neither does one that is not to take over.
    let state = ["programmed.json", "mesh.json", "guard.nft", "wg0.key"]
        .map(|name| format!("/var/lib/wireloom/{name}"));
    let line = format!("stat --format=%n:%i:%Z {} /run/wireloom/agent.sock", state.join(" "));
    let files = || node.run(&line).unwrap();
    let before = files();
    for (words, why) in [("agent --take-over --config /nowhere", "/nowhere"), ("agent", "another agent")] {
        let (status, _, stderr) = run(node, words);
        assert!(status == 1 && stderr.contains(why), "{status} {stderr}");
    }
    assert_eq!(files(), before);
    serves(&fleet, old, "old");

    // It takes over; the other one waits, and both are ready.
    let new = arrives(&fleet, "new");
    serves(&fleet, &new, "new");
    for question in ["live", "ready"] {
        assert_eq!(health(&fleet, "old", question), "ok: another instance serves this node\n");
    }
    // It dies: the other one serves again, but only after 2 s.
    let began = Instant::now();
    new.kill().unwrap();
    serves(&fleet, old, "old");
    let took = began.elapsed();
    println!("figure: an agent is killed that has taken over: the one before serves again after {took:?}");
    assert!(took >= Duration::from_secs(2), "{took:?}");

    // Forward again. An instance that gave way does not take back what a living one has, however often it starts.
    let new = arrives(&fleet, "new");
    serves(&fleet, &new, "new");
    fleet.agents.remove(0).kill().unwrap();
    fleet.agents.insert(0, arrives(&fleet, "old"));
    let old = &fleet.agents[0];
    until(PATIENCE, "the one that gave way to wait", || {
        health(&fleet, "old", "ready").contains("another instance").then_some(())
    })
    .unwrap();
    serves(&fleet, &new, "new");
    // It is ended in good order.
    assert!(new.terminate().unwrap().success());
    serves(&fleet, old, "old");

    // Beside one that cannot be asked, as of a version before, the next one is ready and waits for its end.
    node.run("rm /run/wireloom/agent.sock").unwrap();
    let next = arrives(&fleet, "next");
    until(PATIENCE, "it to stand by", || health(&fleet, "next", "ready").contains("stands by").then_some(()))
        .unwrap();
    serves(&fleet, old, "old");
    assert!(fleet.agents.remove(0).terminate().unwrap().success());
    serves(&fleet, &next, "next");
    fleet.agents.insert(0, next);
    let report = pinger.stop().unwrap();
    println!("figure: agents take over, die and stand by: {report:?}");
    assert_eq!(report.lost, 0, "{report:?}");
    fleet.settle(Promise::SCOPED);
}

/// As on a host, where the agents of two versions ask the same supervisor. The one that gives way releases its device.
#[test]
fn agents_that_share_a_supervisor_have_it_start_the_device_again() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let mut engine = node.host.space.spawn(Command::new(wireloom()).arg("engine")).unwrap();
    let supervisor = |fleet: &Fleet| {
        let ask = || Supervisor::at(Path::new("/run/wireloom/engine.sock")).status();
        fleet.lab.nodes[0].host.space.inside(ask).unwrap()
    };
    until(PATIENCE, "the supervisor", || supervisor(&fleet).ok()).unwrap();
    fleet.agents.push(arrives(&fleet, "old"));
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.settle(Promise::SCOPED);
    let new = arrives(&fleet, "new");
    serves(&fleet, &new, "new");
    let device = supervisor(&fleet).unwrap();
    assert!(device.keeps_a_device() && device.process.is_some(), "{device:?}");
    fleet.lab.nodes[0].run(&format!("kill -KILL {}", device.process.unwrap())).unwrap();
    let again = || {
        let now = supervisor(&fleet).ok()?;
        (now.state == State::Running && now.process != device.process).then_some(now)
    };
    let again = until(PATIENCE, "the device to be started again", again).unwrap();
    assert_eq!(again.restarts, 1, "{again:?}");
    fleet.settle(Promise::SCOPED);
    drop((new, fleet));
    engine.kill().unwrap();
    engine.wait().unwrap();
}

/// What a pod has: an agent and a supervisor of its own.
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) agent: Agent,
    engine: Child,
}

impl Pod {
    /// Starts both on the first node.
    pub(crate) fn start(fleet: &Fleet, name: &'static str) -> Self {
        let node = &fleet.lab.nodes[0];
        let mut engine = Command::new(wireloom());
        engine.arg("engine").env("WIRELOOM_ENGINE_SOCKET", engine_socket(name));
        let engine = node.host.space.spawn(&mut engine).unwrap();
        let agent = Agent::take_over(wireloom(), node, &directory(name), true).unwrap();
        Self { name, agent, engine }
    }

    /// Waits until its agent is ready and its own device serves, and says how long packets waited for that.
    fn serves(&self, fleet: &Fleet) -> Option<Duration> {
        serves(fleet, &self.agent, self.name);
        let serving = fleet.lab.nodes[0].host.space.inside(|| serving("wg0")).unwrap();
        let serving = serving.unwrap().expect("nobody serves");
        let status = self.supervisor(fleet);
        assert_eq!((status.state, status.process), (State::Running, Some(serving.process)), "{}", self.name);
        serving.waited
    }

    /// What its supervisor says.
    pub(crate) fn supervisor(&self, fleet: &Fleet) -> Status {
        let ask = || Supervisor::at(Path::new(&engine_socket(self.name))).status().unwrap();
        fleet.lab.nodes[0].host.space.inside(ask).unwrap()
    }

    /// Ends it as the kubelet does.
    pub(crate) fn delete(mut self) {
        assert!(self.agent.terminate().unwrap().success());
        kill(Pid::from_raw(self.engine.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let ended = || self.engine.try_wait().unwrap();
        assert!(until(PATIENCE, "the supervisor to end", ended).unwrap().success());
    }

    /// Kills it, as when the machine has no memory left.
    pub(crate) fn kill(mut self) {
        self.agent.kill().unwrap();
        self.engine.kill().unwrap();
        self.engine.wait().unwrap();
    }
}

fn engine_socket(name: &str) -> String {
    format!("{}/engine.sock", directory(name))
}

#[test]
pub(crate) fn pods_take_over_with_their_engines_and_nobody_notices() {
    let mut fleet = Fleet::without_agents(Layout { pod_mtu: 1420, ..Layout::default() }, SCOPED);
    let mut old = Pod::start(&fleet, "pod-0");
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.settle(Promise::SCOPED);
    assert_eq!(old.serves(&fleet), None);
    let interface = || {
        let node = &fleet.lab.nodes[0];
        // With peers as neighbours, these are as permanent as the interface.
        ["ip -o link show wg0", "ip neigh show dev wg0 nud permanent"].map(|line| node.run(line).unwrap())
    };
    let before = interface();
    let nonces = Nonces::watch(fleet.lab.underlay()).unwrap();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let interval = Duration::from_millis(10);
    let stream = Stream::start(&b.pods[0], &a.pods[0], Family::V4).unwrap();
    let flows_on = |fleet: &Fleet| {
        let so_far = stream.received();
        fleet.wait("the stream to flow on", |_| stream.received() > so_far + 500_000);
    };
    // Forward and back, as far as a pod can tell.
    for name in ["pod-1", "pod-2", "pod-3"] {
        flows_on(&fleet);
        let pingers = FAMILIES.map(|family| Pinger::start(&a.pods[0], &b.pods[0], family, interval).unwrap());
        let new = Pod::start(&fleet, name);
        let waited = new.serves(&fleet).expect("it has made the interface anew");
        println!("figure: {name} takes over with its engine: packets waited for {waited:?}");
        assert!(health(&fleet, old.name, "ready").contains("another instance"));
        flows_on(&fleet);
        old.delete();
        flows_on(&fleet);
        old = new;
        let reports = pingers.map(|pinger| pinger.stop().unwrap());
        println!("figure: {name} has taken over: {reports:?}");
        assert!(
            reports.iter().all(|report| report.lost == 0),
            "{reports:?}\n{}\n{}",
            fleet.counters(),
            fleet.logs()
        );
    }
    let report = stream.stop().unwrap();
    assert_eq!(interface(), before);
    assert_eq!(nonces.report().unwrap().plaintext, 0);
    assert!(report.intact && report.sent == report.received, "{report:?}");

    // A pod that dies with its engine: the one before serves again, with sessions of its own.
    let new = Pod::start(&fleet, "pod-4");
    new.serves(&fleet);
    let began = Instant::now();
    new.kill();
    old.serves(&fleet);
    println!(
        "figure: a pod is killed that has taken over: the one before serves again after {:?}",
        began.elapsed()
    );
    fleet.settle(Promise::SCOPED);
    old.delete();
}

//! Damaged records in the state directory: named, kept, and no obstacle.

use wireloom_lab::{Layout, Node, Promise, agent};

use crate::fixtures::fleet::{Fleet, rules, run};

const SCOPED: &str = "encrypt_host_traffic = false";
const PROGRAMMED: &str = "/var/lib/wireloom/programmed.json";

/// Ways in which a record may be damaged, as commands that make its file `$F`.
const DAMAGES: [&str; 5] = [
    "true > $F",
    "head -c 9 $F > $F.new; mv $F.new $F",
    r#"echo '{"interface":"wg0","table":254}' > $F"#,
    "rm -f $F; mkfifo $F",
    "rm -f $F; truncate -s 10G $F",
];

fn damage(node: &Node, file: &str, how: &str) {
    node.host.space.feed("sh", &format!("F={file}\n{how}\n")).unwrap();
}

fn kept(node: &Node, file: &str) -> usize {
    let listed = node.host.space.feed("sh", &format!("ls -d {file}.damaged* 2> /dev/null || true"));
    listed.unwrap().lines().count()
}

#[test]
fn a_damaged_record_of_what_is_programmed_stops_neither_agent_nor_down() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    for (number, how) in DAMAGES.into_iter().enumerate() {
        // The agent goes on with agent.toml.
        fleet.agents.clear();
        let node = &fleet.lab.nodes[0];
        let main = node.run("ip rule show").unwrap();
        damage(node, PROGRAMMED, how);
        fleet.start();
        let node = &fleet.lab.nodes[0];
        fleet.wait("the damage in the log", |_| {
            agent::log(node).unwrap().matches(&format!("{PROGRAMMED} is damaged")).count() == number + 1
        });
        fleet.wait("the record", |_| {
            node.run(&format!("cat {PROGRAMMED}")).is_ok_and(|it| it.contains("wg0"))
        });
        fleet.settle(Promise::SCOPED);
        assert_eq!(node.run("ip rule show").unwrap(), main);
        assert_eq!(kept(node, PROGRAMMED), 2 * number + 1, "{how}");

        // And `down` too.
        fleet.agents.clear();
        let node = &fleet.lab.nodes[0];
        damage(node, PROGRAMMED, how);
        let (status, shown, errors) = run(node, "down");
        assert!(
            status == 0 && errors.contains(&format!("{PROGRAMMED} is damaged")),
            "{how}: {shown}{errors}"
        );
        assert!(rules(node).is_empty(), "{how}: {shown}");
        assert!(node.run("ip link show wg0").is_err(), "{how}: {shown}");
        let left = node.run("ip rule show").unwrap();
        assert!(left.contains("32766:\tfrom all lookup main"), "{how}: {left}");
        assert_eq!(kept(node, PROGRAMMED), 2 * number + 2, "{how}");
        fleet.start();
        fleet.settle(Promise::SCOPED);
    }
}

#[test]
fn other_damaged_records_stop_neither_agent_nor_down() {
    let mut fleet = Fleet::without_agents(Layout::default(), "encrypt_host_traffic = true");
    for file in ["/var/lib/wireloom/sysctls.json", "/var/lib/wireloom/creating", "/run/wireloom/wg0.json"] {
        for how in ["true > $F", "rm -f $F; mkfifo $F", "rm -f $F; truncate -s 10G $F"] {
            fleet.start();
            fleet.settle(Promise::HOST);
            fleet.agents.clear();
            let node = &fleet.lab.nodes[0];
            damage(node, file, how);
            let (status, shown, errors) = run(node, "down");
            assert!(status == 0, "{file}, {how}: {shown}{errors}");
            let run_file = file.starts_with("/run");
            assert_eq!(errors.contains(&format!("{file} is damaged")), !run_file, "{how}: {errors}");
            damage(node, file, how);
        }
    }
    fleet.start();
    fleet.settle(Promise::HOST);
}

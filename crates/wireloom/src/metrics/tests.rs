//! Scrapes and probes over real connections.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use wireloom_types::PublicKey;

use super::{
    Board, Counts, Device, Judged, Membership, Peer, Pulse, Server, Snapshot, Traffic,
    scrape::{Format, Scrape},
    server::answer,
};
use crate::run_file::monotonic_time;

/// Longer than a server waits before it tries again to bind an address that somebody else has taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is answered to these bytes, after which the client sends no more.
fn exchange(board: &Arc<Board>, request: &[u8]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (stream, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| answer(stream, board, &Scrape::of(board), PATIENCE));
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        // The server resets a connection of whose request it has not read all.
        let _ = client.read_to_string(&mut text);
        let _ = server.join().unwrap();
        text
    })
}

fn get(board: &Arc<Board>, path: &str) -> String {
    exchange(board, format!("GET {path} HTTP/1.1\r\nHost: n1:9586\r\n\r\n").as_bytes())
}

fn peer(number: u16) -> Peer {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&number.to_be_bytes());
    Peer {
        public_key: PublicKey::from_bytes(key),
        name: Some(format!("ip-10-161-{number:05}.eu-west-1.compute.internal")),
        sent: 1 << 40,
        received: 1 << 40,
        handshake: 1_700_000_000,
    }
}

/// A node with so many peers, of which everything is known.
fn board(peers: u16) -> Arc<Board> {
    let board = Arc::new(Board::default());
    board.beat(Pulse { turned: monotonic_time().unwrap(), unready: None });
    board.timing.note(Duration::from_millis(9), Duration::from_millis(5), Duration::from_millis(2));
    let traffic = match peers {
        0..=100 => Traffic::Peers((0..peers).map(peer).collect()),
        _ => Traffic::Sums { sent: 1 << 50, received: 1 << 50 },
    };
    let counted = |node: Option<u16>| {
        let name = node.and_then(|node| peer(node).name);
        ["out", "in"].map(|direction| ((direction, "proven", name.clone()), 7))
    };
    let refused = match peers {
        0..=100 => (0..peers).flat_map(|node| counted(Some(node))).collect(),
        _ => counted(None).into(),
    };
    board.publish(Snapshot {
        interface: "wg0".into(),
        mesh: Some((usize::from(peers) + 1, 1)),
        judged: Some(Judged {
            encrypting: 1,
            states: [("up", 3), ("silent", 1)].into(),
            traffic: [("encrypted", 3)].into(),
            findings: [((wireloom_plan::warning::Severity::Error, "peer_silent".into()), 1)].into(),
        }),
        troubles: vec![("membership", true)],
        counts: Counts { passes: 7, repairs: 2, ..Counts::default() },
        device: Device {
            at: Some(Instant::now()),
            answers: Some(true),
            traffic,
            drops: Some([("bad-mac1".into(), 5)].into()),
        },
        refused,
        membership: Membership {
            heard: Some(Instant::now()),
            store: Some((3, Some(true))),
            left_out: 2,
            held: 0,
        },
        ..Snapshot::default()
    });
    board
}

#[test]
fn a_scrape_has_the_names_and_labels_that_dashboards_read() {
    let answer = get(&board(2), "/metrics?x=1");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let labels = format!(
        r#"{{interface="wg0",public_key="{}",friendly_name="ip-10-161-00001.eu-west-1.compute.internal"}}"#,
        peer(1).public_key
    );
    for line in [
        format!("wireguard_sent_bytes_total{labels} 1099511627776\n"),
        format!("wireguard_received_bytes_total{labels} 1099511627776\n"),
        format!("wireguard_latest_handshake_seconds{labels} 1700000000\n"),
        "# TYPE wireguard_sent_bytes_total counter\n".into(),
        "wireloom_ready 1\n".into(),
        "wireloom_encrypting 1\n".into(),
        "wireloom_peers{state=\"silent\"} 1\n".into(),
        "wireloom_warnings{severity=\"error\",kind=\"peer_silent\"} 1\n".into(),
        "wireloom_errors{what=\"membership\"} 1\n".into(),
        "wireloom_passes_total{outcome=\"reached\"} 7\n".into(),
        "wireloom_repairs_total 2\n".into(),
        "wireloom_plan_seconds_bucket{le=\"0.003\"} 1\n".into(),
        "wireloom_device_drops_total{reason=\"bad-mac1\"} 5\n".into(),
        "wireloom_store_errors_total 3\n".into(),
        "wireloom_left_out_records 2\n".into(),
    ] {
        assert!(body.contains(&line), "{line}\n{body}");
    }
    let request = b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let open = exchange(&board(2), request);
    assert!(open.contains("application/openmetrics-text") && open.ends_with("# EOF\n"), "{open}");
}

#[test]
fn every_metric_is_documented() {
    let documented = include_str!("../../../../docs/metrics.md");
    let text = Scrape::of(&board(2)).text(Format::Text).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names {
        let short = name.replace("wireloom_", "`…_").replace("seconds", "…`");
        assert!(documented.contains(&format!("`{name}`")) || documented.contains(&short), "{name}");
    }
}

#[test]
fn above_a_hundred_nodes_there_are_sums_and_a_scrape_stays_small() {
    for peers in [100, 5000] {
        let scrape = Scrape::of(&board(peers));
        let begun = Instant::now();
        let text = scrape.text(Format::Text).unwrap();
        let took = begun.elapsed();
        println!(
            "figure: a scrape with {peers} peers: {} bytes, {:.2} ms",
            text.len(),
            took.as_secs_f64() * 1e3
        );
        assert!(text.len() < if peers == 100 { 100_000 } else { 10_000 }, "{}", text.len());
        assert_eq!(text.contains("public_key="), peers == 100, "{text}");
    }
    let text = Scrape::of(&board(101)).text(Format::Text).unwrap();
    assert!(text.contains("wireguard_sent_bytes_total{interface=\"wg0\"} 1125899906842624\n"), "{text}");
}

#[test]
fn before_the_first_pass_there_is_no_verdict_and_nothing_of_the_device() {
    let text = Scrape::of(&Arc::new(Board::default())).text(Format::Text).unwrap();
    assert!(text.contains("wireloom_build_info{") && text.contains("wireloom_ready "), "{text}");
    assert!(!text.contains("wireloom_encrypting") && !text.contains("wireguard_"), "{text}");
}

#[test]
fn a_node_without_a_record_to_publish_does_not_lack_it_in_the_store() {
    for (is_published, line) in [
        (None, None),
        (Some(false), Some("wireloom_record_published 0")),
        (Some(true), Some("wireloom_record_published 1")),
    ] {
        let board = Arc::new(Board::default());
        let membership = Membership { store: Some((0, is_published)), ..Membership::default() };
        board.publish(Snapshot { membership, ..Snapshot::default() });
        let text = Scrape::of(&board).text(Format::Text).unwrap();
        assert_eq!(text.lines().find(|it| it.starts_with("wireloom_record_published")), line, "{text}");
        assert!(text.contains("wireloom_store_errors_total 0\n"), "{text}");
    }
}

#[test]
fn probes_say_why_not() {
    let board = board(1);
    assert!(get(&board, "/livez").starts_with("HTTP/1.1 200 "));
    assert!(get(&board, "/readyz").ends_with("\r\n\r\nok\n"));
    let turned = monotonic_time().unwrap();
    board.beat(Pulse { turned, unready: Some("cannot create wg0".into()) });
    assert!(get(&board, "/livez").starts_with("HTTP/1.1 200 "));
    let answer = get(&board, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("cannot create wg0\n"), "{answer}");
    assert!(get(&board, "/metrics").contains("\nwireloom_ready 0\n"));
}

#[test]
fn a_loop_that_does_not_turn_is_neither_live_nor_ready() {
    let pulse = Pulse { turned: 1_000_000, unready: None };
    assert_eq!((pulse.live(1_090_000), pulse.ready(1_090_000)), (Ok(()), Ok(())));
    let stuck = Err("the agent has done nothing for 91 s".to_owned());
    assert_eq!((pulse.live(1_091_000), pulse.ready(1_091_000)), (stuck.clone(), stuck));
    assert_eq!(pulse.live(0), Ok(()), "a clock that goes back is no reason to restart");
}

#[test]
fn what_is_no_request_for_these_pages_is_refused() {
    let board = board(0);
    let long = format!("GET /metrics HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("GET /metrics/../secret HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
        ("\u{16}\u{3}\u{1}TLS", "400"),
        ("GET /metrics\r\n\r\n", "400"),
        (&long, "431"),
        (&many, "431"),
    ] {
        let answer = exchange(&board, request.as_bytes());
        // A reset may overtake the answer to a request that was not read to its end.
        let is_reset = request.len() > 8192 && answer.is_empty();
        assert!(is_reset || answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
    let head = exchange(&board, b"HEAD /livez HTTP/1.0\r\n\r\n");
    assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(exchange(&board, b"GET /metrics HTTP/1.1\r\nHost:"), "", "it is not complete");
}

#[test]
fn a_client_that_sends_nothing_or_reads_nothing_is_left_after_a_while() {
    let board = board(100);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let patience = Duration::from_millis(100);
    for request in ["", "GET /metrics HTTP/1.1\r\nX: "] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let begun = Instant::now();
        answer(stream, &board, &Scrape::of(&board), patience).unwrap_err();
        assert!(begun.elapsed() >= patience && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
}

#[test]
fn many_connections_wait_for_none_and_a_server_that_is_dropped_ends() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Server::start(address, board(1)).unwrap();
    let begun = Instant::now();
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    let connect = || TcpStream::connect(address);
    let is_answered = || {
        let mut text = String::new();
        let mut client = connect()?;
        client.write_all(b"GET /livez HTTP/1.1\r\n\r\n")?;
        client.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text.starts_with("HTTP/1.1 200 "))
    };
    until("an answer", &|| is_answered().unwrap_or(false));
    // They say nothing, each for five seconds.
    let idle: Vec<_> = (0..16).map(|_| connect().unwrap()).collect();
    until("the limit", &|| !is_answered().unwrap_or(false));
    drop(idle);
    until("an answer again", &|| is_answered().unwrap_or(false));
    drop(server);
    until("the end", &|| connect().is_err());
}

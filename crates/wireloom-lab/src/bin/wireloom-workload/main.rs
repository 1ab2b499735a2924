//! A server for test pods: it tells every client who answered, and which address it saw.
//!
//! ```text
//! wireloom-workload [NAME PORT…]
//! ```
//!
//! It listens on every PORT, over TCP and UDP, IPv4 and IPv6. A request is a line; the answer is the line
//! `NAME CLIENT-ADDRESS`, padded with spaces to the length of the request. Who watches the network can thus tell the
//! packets of an exchange by their length, in both directions and encrypted too ([`wireloom_lab::flows`]).
//!
//! Without arguments it listens nowhere: the container that holds a pod's network runs it too.
//!
//! In a container it is process 1. The kernel delivers no signal to that one that it does not handle, so SIGTERM is
//! blocked and waited for instead: a blocked signal stays pending, also for process 1.

mod tcp;
mod udp;

use std::{env, net::IpAddr, process::ExitCode, thread};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wireloom-workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT arrives.
fn run() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let ports = arguments.map(|port| port.parse().with_context(|| format!("{port} is not a port")));
    let ports = ports.collect::<anyhow::Result<Vec<u16>>>()?;

    // Threads inherit the mask, so no thread of this process handles these signals.
    let end = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    end.thread_block().context("cannot block SIGTERM")?;
    for port in ports {
        let listener = tcp::listen(port).with_context(|| format!("cannot listen on TCP port {port}"))?;
        let socket = udp::bind(port).with_context(|| format!("cannot listen on UDP port {port}"))?;
        let (tcp_name, udp_name) = (name.clone(), name.clone());
        thread::spawn(move || tcp::serve(&listener, &tcp_name));
        thread::spawn(move || udp::serve(&socket, &udp_name));
    }
    end.wait().context("cannot wait for SIGTERM")?;
    Ok(())
}

/// The answer to a request of `length` bytes. It is longer than the request when the words do not fit.
fn answer(name: &str, client: IpAddr, length: usize) -> String {
    let words = format!("{name} {}", client.to_canonical());
    format!("{words:<width$}\n", width = length.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_its_request() {
        let client: IpAddr = "::ffff:10.161.1.2".parse().unwrap();
        assert_eq!(answer("pod-b", client, 20), "pod-b 10.161.1.2   \n");
        assert_eq!(answer("pod-b", client, 0), "pod-b 10.161.1.2\n");
    }
}

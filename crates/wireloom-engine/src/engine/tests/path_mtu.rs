//! Paths that do not carry what the interface takes, under virtual time.

use std::net::Ipv6Addr;

use super::*;
use crate::packet::{checksum::checksum, ipv6};

const V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)];

/// Two machines with a session and addresses of both families. The path to the second one is narrow.
fn pair_with_path(mtu: usize, reports: bool) -> (Machine, Machine) {
    let (mut a, mut b) = pair();
    let allow = |machine: &mut Machine, key: PublicKey, address: Ipv6Addr| {
        let lines = format!("public_key={}\nallowed_ip={address}/128", key.to_hex());
        assert_eq!(machine.set(at(0), &lines), Reply::Done);
    };
    allow(&mut a, b.public_key(), V6[1]);
    allow(&mut b, a.public_key(), V6[0]);
    a.stack.send(&packet(a.inner, b.inner, b"hello"));
    settle(at(0), &mut [&mut a, &mut b]);
    assert!(b.stack.receive().is_some());
    a.network.narrow(b.engine_address(), mtu, reports);
    (a, b)
}

/// This many milliseconds after the start of a test.
fn millis(millis: u64) -> Now {
    let begin = at(1);
    Now { monotonic: begin.monotonic + Duration::from_millis(millis), ..begin }
}

fn received(machine: &Machine) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| machine.stack.receive()).collect()
}

/// The largest packet, in bytes, that an ICMP error allows, about a packet with these addresses.
fn allowed(error: &[u8], from: IpAddr, to: IpAddr) -> usize {
    let parsed = wireloom_proto::inner::Packet::parse(error).unwrap();
    assert_eq!((parsed.source, parsed.destination, parsed.len), (to, from, error.len()));
    let (message, kind) = if from.is_ipv4() {
        assert_eq!((checksum(&[&error[..20]]), checksum(&[&error[20..]])), (0, 0));
        (&error[20..], [3, 4])
    } else {
        let message = ipv6::icmpv6(error).unwrap();
        assert_eq!(ipv6::icmpv6_checksum(error.first_chunk().unwrap(), message), 0);
        (message, [2, 0])
    };
    assert_eq!(message[..2], kind);
    let quoted = &message[8..];
    let addresses = if from.is_ipv4() { &quoted[12..20] } else { &quoted[8..40] };
    let expected = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("{from} and {to}"),
    };
    assert_eq!(addresses, expected);
    usize::from(u16::from_be_bytes([message[6], message[7]]))
}

/// A TCP stream from one machine to another, in super-packets every 10 ms, whose sender obeys errors.
struct Sender {
    is_v6: bool,
    /// The longest segment, in bytes.
    longest: usize,
}

impl Sender {
    /// Sends for this time, and returns how many bytes of payload have arrived.
    fn run(&mut self, a: &mut Machine, b: &mut Machine, from: u64, to: u64) -> usize {
        let (own, other): (IpAddr, IpAddr) =
            if self.is_v6 { (V6[0].into(), V6[1].into()) } else { (a.inner.into(), b.inner.into()) };
        let mut arrived = 0;
        for time in (from..to).step_by(10) {
            let headers = if self.is_v6 { 72 } else { 52 };
            let stream = match self.is_v6 {
                true => Stream::between_v6(V6[0], V6[1], 20_000),
                false => Stream::between(a.inner, b.inner, 20_000),
            };
            a.stack.send_super(stream.super_header(self.longest - headers, 0), &stream.bytes(true));
            settle(millis(time), &mut [&mut *a, &mut *b]);
            arrived += received(b).iter().map(|segment| segment.len() - headers).sum::<usize>();
            for error in received(a) {
                self.longest = allowed(&error, own, other);
            }
        }
        arrived
    }
}

#[test]
fn a_narrow_path_is_found_by_probes_and_senders_are_told() {
    // 60 bytes less than the path's MTU, rounded down to a multiple of 16.
    for (is_v6, mtu, longest) in
        [(false, 1400, 1328), (true, 1400, 1328), (false, 1280, 1216), (false, 600, 528)]
    {
        let (mut a, mut b) = pair_with_path(mtu, true);
        let mut sender = Sender { is_v6, longest: MTU };
        sender.run(&mut a, &mut b, 0, 1000);
        assert_eq!(sender.longest, longest, "{mtu}");
        let fragmented = a.network.fragmented();
        assert!(fragmented > 0, "the first packets pass as well");
        assert_eq!(sender.run(&mut a, &mut b, 1000, 3000), 200 * 20_000);
        assert_eq!(a.network.fragmented(), fragmented);
        assert!(a.dropped("too-big") > 0);
        assert_eq!(a.all_dropped(), a.dropped("too-big"));
        assert_eq!(b.all_dropped(), 0);
    }
}

#[test]
fn everything_arrives_where_no_errors_come_back() {
    let (mut a, mut b) = pair_with_path(1400, false);
    let mut sender = Sender { is_v6: false, longest: MTU };
    assert_eq!(sender.run(&mut a, &mut b, 0, 30_000), 3000 * 20_000);
    assert_eq!(sender.longest, MTU);
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn packets_that_must_pass_arrive_in_fragments() {
    let (mut a, mut b) = pair_with_path(1280, true);
    let mut sender = Sender { is_v6: true, longest: MTU };
    sender.run(&mut a, &mut b, 0, 1000);
    assert_eq!(sender.longest, 1280, "IPv6 has no smaller MTU");
    let before = a.network.fragmented();
    assert_eq!(sender.run(&mut a, &mut b, 1000, 2000), 100 * 20_000);
    assert!(a.network.fragmented() > before);
    // IPv4 that may be fragmented.
    let packet = packet(a.inner, b.inner, &[0; 1400]);
    a.stack.send(&packet);
    settle(millis(2000), &mut [&mut a, &mut b]);
    assert_eq!(received(&b), [packet]);
    assert_eq!(a.all_dropped(), a.dropped("too-big"));
}

#[test]
fn a_path_that_becomes_narrow_or_wide_again_is_noticed() {
    let (mut a, mut b) = pair_with_path(9000, true);
    let mut sender = Sender { is_v6: false, longest: MTU };
    sender.run(&mut a, &mut b, 0, 15_000);
    assert_eq!((sender.longest, a.network.fragmented()), (MTU, 0));
    a.network.narrow(b.engine_address(), 1400, true);
    sender.run(&mut a, &mut b, 15_000, 26_000);
    assert_eq!(sender.longest, 1328, "probes come in pairs, every ten seconds");
    // Ten minutes later the sender tries longer packets again, as the kernel does.
    a.network.narrow(b.engine_address(), 9000, true);
    sender.longest = MTU;
    sender.run(&mut a, &mut b, 640_000, 641_000);
    assert_eq!(sender.longest, MTU);
}

#[test]
fn a_path_mtu_can_be_set_and_asked_for() {
    let (mut a, mut b) = pair_with_path(9000, true);
    let key = b.public_key().to_hex();
    let paths = |machine: &mut Machine| match machine.request(at(1), "get_paths=1") {
        Reply::Lines(lines) => lines.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(paths(&mut a), format!("public_key={key}\n"));
    let set = |machine: &mut Machine, value: u16| {
        assert_eq!(machine.set(at(1), &format!("public_key={key}\npath_mtu={value}")), Reply::Done);
    };
    set(&mut a, 1300);
    assert_eq!(paths(&mut a), format!("public_key={key}\npath_mtu=1300\n"));
    assert_eq!(a.get(at(1)).matches("path_mtu").count(), 0, "`wg` does not know this key");
    let mut sender = Sender { is_v6: false, longest: MTU };
    sender.run(&mut a, &mut b, 0, 20);
    assert_eq!(sender.longest, 1232);
    set(&mut a, 0);
    sender.longest = MTU;
    assert_eq!(sender.run(&mut a, &mut b, 20, 40), 40_000);
}

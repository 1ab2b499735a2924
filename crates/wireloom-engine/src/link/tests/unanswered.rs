//! The network stack has given neighbours up, and their peers come back.

use super::*;

/// The interface's own addresses.
const V4: [u8; 4] = [10, 0, 0, 9];
const V6: &str = "fd00::9";

/// What the stack is told late: each frame.
fn told_late(world: &World) -> Vec<Vec<u8>> {
    let mut told = Vec::new();
    world.link.answer_late(|frame| told.push(frame.to_vec()));
    told.sort();
    told
}

fn what_is_left(world: &World) -> Unheard {
    world.link.answer_late(|frame| panic!("{frame:?}"))
}

fn silence(world: &mut World, number: u8) {
    world.device.begin_handshake(at(1), world.id(number));
    world.device.handle_timeout(at(7));
}

/// Configures a peer's endpoint: it may be reachable.
fn give_endpoint(world: &mut World, number: u8) {
    world.device.configure(at(8), |configuration| {
        configuration.peer(&key(number)).unwrap().set_endpoint(SocketAddr::from(([192, 0, 2, 9], 51820)));
    });
}

/// A peer begins a handshake.
fn bring_back(world: &mut World, number: u8) {
    let mut peer = Device::new(&[number; 32]);
    peer.configure(at(8), |configuration| {
        configuration.set_private_key(Some(private_key(number)));
        configuration.add_peer(key(9)).unwrap().set_endpoint(SocketAddr::from(([192, 0, 2, 9], 51820)));
    });
    let id = peer.peer(&key(9)).unwrap().id;
    peer.begin_handshake(at(8), id);
    let initiation = peer.poll_transmit(at(8)).unwrap().datagram.to_vec();
    let from = SocketAddr::from(([192, 0, 2, number], 51820));
    world.device.handle_handshake(at(8), from.into(), &initiation).unwrap();
}

/// An ARP reply, an advertisement and a solicitation, from a peer's link address to the interface.
fn expected(peer: u8, v4: [u8; 4], v6: &str) -> Vec<Vec<u8>> {
    let from = address(peer).to_bytes();
    let header = |kind| Header { destination: OWN, source: address(peer), kind }.to_bytes();
    let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &from, &v4, &OWN.to_bytes(), &V4].concat();
    let own = V6.parse::<Ipv6Addr>().unwrap().octets();
    let question = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &own, &[1, 1], &from].concat();
    let question = icmpv6(OWN, v6, V6, &question)[HEADER_LEN..].to_vec();
    let target = v6.parse::<Ipv6Addr>().unwrap().octets();
    let answer = [&[136, 0, 0, 0, 0xe0, 0, 0, 0][..], &target, &[2, 1], &from].concat();
    let answer = icmpv6(OWN, v6, V6, &answer)[HEADER_LEN..].to_vec();
    let mut frames = [(kind::ARP, reply), (kind::IPV6, answer), (kind::IPV6, question)]
        .map(|(kind, packet)| [&header(kind)[..], &packet].concat())
        .to_vec();
    frames.sort();
    frames
}

#[test]
fn the_stack_is_told_once_of_peers_that_are_back_about_which_it_had_asked() {
    let mut world = World::new();
    silence(&mut world, 1);
    for _ in 0..3 {
        world.route(&arp(BROADCAST, V4, [10, 0, 0, 1]));
        world.route(&solicitation(BROADCAST, V6, "fd00::1"));
        // Something else told the stack that the second peer has this address; that peer is there.
        world.route(&solicitation(address(2), V6, "fd77::1"));
    }
    assert_eq!(what_is_left(&world), Unheard::Silent);
    give_endpoint(&mut world, 1);
    assert_eq!(what_is_left(&world), Unheard::Silent, "nobody has heard it");
    bring_back(&mut world, 1);
    assert_eq!(told_late(&world), expected(1, [10, 0, 0, 1], "fd00::1"));
    assert_eq!(what_is_left(&world), Unheard::Nobody, "once");
    assert_eq!(world.link.told().len(), 2, "if these addresses move, the stack has to know");
}

#[test]
fn addresses_that_have_moved_meanwhile_are_where_they_are_now() {
    let mut world = World::new();
    bring_back(&mut world, 2);
    silence(&mut world, 1);
    world.route(&arp(BROADCAST, V4, [10, 0, 0, 1]));
    world.route(&solicitation(BROADCAST, V6, "fd00::1"));
    world.device.configure(at(6), |configuration| {
        let mut peer = configuration.peer(&key(2)).unwrap();
        peer.add_allowed_ip("10.0.0.1/32".parse().unwrap());
        peer.add_allowed_ip("fd00::1/128".parse().unwrap());
    });
    world.link.announce(|frame| panic!("it was told nothing: {frame:?}"));
    assert_eq!(told_late(&world), expected(2, [10, 0, 0, 1], "fd00::1"));
}

/// The stack has given the address up, and would not ask for it again.
#[test]
fn addresses_that_somebody_gets_later_are_not_forgotten() {
    let mut world = World::new();
    bring_back(&mut world, 2);
    silence(&mut world, 1);
    world.route(&solicitation(BROADCAST, V6, "fd00::1"));
    world.device.configure(at(6), |configuration| configuration.remove_peer(&key(1)));
    world.link.change(|table| table.remove(&key(1)));
    let announce = |world: &World| world.link.announce(|frame| panic!("it was told nothing: {frame:?}"));
    announce(&world);
    assert_eq!(what_is_left(&world), Unheard::Nobody, "nobody can be heard");
    world.device.configure(at(7), |configuration| {
        configuration.peer(&key(2)).unwrap().add_allowed_ip("fd00::1/128".parse().unwrap());
    });
    announce(&world);
    assert_eq!(told_late(&world), expected(2, [0; 4], "fd00::1")[1..]);
}

#[test]
fn nothing_is_told_of_an_address_that_a_silent_peer_has_lost() {
    let mut world = World::new();
    silence(&mut world, 1);
    world.route(&solicitation(BROADCAST, V6, "fd00::1"));
    // Something else told the stack that the peer has this one.
    world.route(&solicitation(address(1), V6, "fd77::1"));
    world.device.configure(at(6), |configuration| {
        configuration.peer(&key(1)).unwrap().remove_allowed_ip("fd00::1/128".parse().unwrap());
    });
    world.link.announce(|frame| panic!("it was told nothing: {frame:?}"));
    bring_back(&mut world, 1);
    assert_eq!(told_late(&world), expected(1, [0; 4], "fd77::1")[1..]);
    assert!(world.link.told().is_empty(), "what is known from elsewhere is not corrected");
}

/// What the next process knows is what the stack was told.
#[test]
fn after_a_hand_over_the_stack_is_told_of_all_that_it_may_have_given_up() {
    let mut world = World::new();
    for number in [1, 2] {
        world.route(&arp(BROADCAST, V4, [10, 0, 0, number]));
        world.route(&solicitation(BROADCAST, V6, &format!("fd00::{number}")));
    }
    let told = world.link.told();
    silence(&mut world, 1);
    let next = Link::new(OWN, world.device.transport());
    next.change(|table| world.device.peers().for_each(|peer| table.insert(peer.path)));
    next.remember(&told);
    world.link = next;
    assert_eq!(what_is_left(&world), Unheard::Silent);
    bring_back(&mut world, 1);
    let [arp, frames @ ..] = &told_late(&world)[..] else { panic!("three frames") };
    assert_eq!((&arp[..6], &arp[HEADER_LEN + 14..][..4]), (&OWN.to_bytes()[..], &[10, 0, 0, 1][..]));
    let messages: Vec<_> = frames.iter().map(|frame| ipv6::icmpv6(&frame[HEADER_LEN..]).unwrap()).collect();
    let [question, answer] = messages[..] else { panic!("a solicitation and an advertisement") };
    assert_eq!((answer[0], &answer[8..24]), (136, &"fd00::1".parse::<Ipv6Addr>().unwrap().octets()[..]));
    assert_eq!((question[0], &question[8..24]), (135, &OWN.link_local().octets()[..]));
}

#[test]
fn many_addresses_are_told_in_portions() {
    const EACH: u8 = 10;
    let peers = LATE_AT_ONCE.div_ceil(usize::from(EACH)) as u8 + 1;
    let mut world = World::new();
    for number in 100..100 + peers {
        world.device.configure(at(1), |configuration| {
            let mut peer = configuration.add_peer(key(number)).unwrap();
            peer.set_endpoint(SocketAddr::from(([192, 0, 2, number], 51820)));
            peer.add_allowed_ip(format!("10.{number}.0.0/16").parse().unwrap());
        });
        let path = world.device.peer(&key(number)).unwrap().path;
        world.link.change(|table| table.insert(path));
        silence(&mut world, number);
        for last in 0..EACH {
            world.route(&arp(BROADCAST, V4, [10, number, 0, last]));
        }
    }
    for number in 100..100 + peers {
        bring_back(&mut world, number);
    }
    let mut count = 0;
    assert_eq!(world.link.answer_late(|_| count += 1), Unheard::Some);
    assert!((LATE_AT_ONCE..LATE_AT_ONCE + usize::from(EACH)).contains(&count), "{count}");
    assert_eq!(world.link.answer_late(|_| count += 1), Unheard::Nobody);
    assert_eq!(count, usize::from(peers * EACH));
}

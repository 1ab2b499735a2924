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

fn bring_back(world: &mut World, number: u8) {
    world.device.configure(at(8), |configuration| {
        configuration.peer(&key(number)).unwrap().set_endpoint(SocketAddr::from(([192, 0, 2, 9], 51820)));
    });
}

/// An ARP reply and a solicitation, from a peer's link address to the interface.
fn expected(peer: u8, v4: [u8; 4], v6: &str) -> Vec<Vec<u8>> {
    let from = address(peer).to_bytes();
    let header = |kind| Header { destination: OWN, source: address(peer), kind }.to_bytes();
    let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &from, &v4, &OWN.to_bytes(), &V4].concat();
    let own = V6.parse::<Ipv6Addr>().unwrap().octets();
    let question = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &own, &[1, 1], &from].concat();
    let question = icmpv6(OWN, v6, V6, &question)[HEADER_LEN..].to_vec();
    let mut frames =
        vec![[&header(kind::ARP)[..], &reply].concat(), [&header(kind::IPV6)[..], &question].concat()];
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
    bring_back(&mut world, 1);
    assert_eq!(told_late(&world), expected(1, [10, 0, 0, 1], "fd00::1"));
    assert_eq!(what_is_left(&world), Unheard::Nobody, "once");
    assert_eq!(world.link.told().len(), 2, "if these addresses move, the stack has to know");
}

#[test]
fn addresses_that_have_moved_meanwhile_are_where_they_are_now() {
    let mut world = World::new();
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

#[test]
fn nothing_is_told_of_a_peer_that_was_removed() {
    let mut world = World::new();
    silence(&mut world, 1);
    world.route(&solicitation(BROADCAST, V6, "fd00::1"));
    // Something else told the stack that the peer has this one.
    world.route(&solicitation(address(1), V6, "fd77::1"));
    world.device.configure(at(6), |configuration| configuration.remove_peer(&key(1)));
    world.link.change(|table| table.remove(&key(1)));
    world.link.announce(|frame| panic!("it was told nothing: {frame:?}"));
    assert_eq!(what_is_left(&world), Unheard::Nobody);
}

#[test]
fn nothing_is_told_of_an_address_that_a_silent_peer_has_lost() {
    let mut world = World::new();
    silence(&mut world, 1);
    world.route(&solicitation(BROADCAST, V6, "fd00::1"));
    world.route(&solicitation(address(1), V6, "fd77::1"));
    world.device.configure(at(6), |configuration| {
        configuration.peer(&key(1)).unwrap().remove_allowed_ip("fd00::1/128".parse().unwrap());
    });
    world.link.announce(|frame| panic!("it was told nothing: {frame:?}"));
    bring_back(&mut world, 1);
    let told = told_late(&world);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0][HEADER_LEN + 8..][..16], "fd77::1".parse::<Ipv6Addr>().unwrap().octets());
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
    let [arp, question] = told_late(&world).try_into().unwrap();
    assert_eq!((&arp[..6], &arp[HEADER_LEN + 14..][..4]), (&OWN.to_bytes()[..], &[10, 0, 0, 1][..]));
    let message = ipv6::icmpv6(&question[HEADER_LEN..]).unwrap();
    assert_eq!((message[0], &message[8..24]), (135, &OWN.link_local().octets()[..]));
    assert_eq!(ipv6::icmpv6_checksum(question[HEADER_LEN..].first_chunk().unwrap(), message), 0);
}

#[test]
fn many_addresses_are_told_in_portions() {
    let mut world = World::new();
    for number in [1, 2] {
        silence(&mut world, number);
        for last in 0..40 {
            world.route(&arp(BROADCAST, V4, [172, number, 0, last]));
        }
    }
    for number in [1, 2] {
        bring_back(&mut world, number);
    }
    let mut count = 0;
    assert_eq!(world.link.answer_late(|_| count += 1), Unheard::Some);
    assert_eq!(count, LATE_AT_ONCE);
    assert_eq!(world.link.answer_late(|_| count += 1), Unheard::Nobody);
    assert_eq!(count, 80);
}

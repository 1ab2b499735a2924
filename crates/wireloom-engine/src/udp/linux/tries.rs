//! How often the datagrams of a batch are tried.
//!
//! An error may have been raised by ICMP for an earlier datagram, to any peer, and when thousands do not answer, there
//! may be several such errors in a row. So a datagram is tried again after any error. But where there is no way to a
//! destination, all datagrams to it fail, and trying each of them again would hold up those to others.

use std::net::SocketAddr;

/// How often a datagram is tried again after an error that others may have caused.
const AGAIN_MAX: u32 = 8;

/// The tries of one batch.
#[derive(Default)]
pub(super) struct Tries {
    /// The datagram that was tried again last, and how often.
    again: Option<(usize, u32)>,
    /// Destinations to which a datagram has failed all its tries, and with which error.
    refused: Vec<(SocketAddr, i32)>,
}

impl Tries {
    /// Whether the datagram at this position, which has failed with this error, is tried again. If so, it is counted.
    pub(super) fn allow_another(&mut self, position: usize, to: SocketAddr, error: i32) -> bool {
        let before = self.again.filter(|(last, _)| *last == position).map_or(0, |(_, times)| times);
        if before == AGAIN_MAX || self.refused.contains(&(to, error)) {
            return false;
        }
        self.again = Some((position, before + 1));
        true
    }

    /// Notes that a datagram is lost for this error.
    pub(super) fn note_refused(&mut self, to: SocketAddr, error: Option<i32>) {
        let refused = error.map(|error| (to, error)).filter(|refused| !self.refused.contains(refused));
        self.refused.extend(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51820))
    }

    /// Sends a batch of 128 datagrams, to this destination each, as long as it may. `fails` says whether a call fails,
    /// by the number of the calls before it and the destination, and with which error. Returns the number of calls, and
    /// how many datagrams were lost.
    fn send(to: impl Fn(usize) -> SocketAddr, fails: impl Fn(u32, SocketAddr) -> Option<i32>) -> (u32, u32) {
        let (mut tries, mut calls, mut lost) = (Tries::default(), 0, 0);
        for position in 0..128 {
            let to = to(position);
            loop {
                let error = fails(calls, to);
                calls += 1;
                match error {
                    None => break,
                    Some(error) if tries.allow_another(position, to, error) => {}
                    Some(error) => {
                        tries.note_refused(to, Some(error));
                        lost += 1;
                        break;
                    }
                }
            }
        }
        (calls, lost)
    }

    #[test]
    fn datagrams_to_a_destination_without_a_way_are_tried_once_each_and_those_to_others_go() {
        let only_first_is_lost = |_, to| (to == endpoint(1)).then_some(libc::ENETUNREACH);
        assert_eq!(send(|_| endpoint(1), only_first_is_lost), (128 + AGAIN_MAX, 128));
        let in_turn = |position| endpoint(1 + (position % 3) as u8);
        let lost = 43;
        assert_eq!(send(in_turn, only_first_is_lost), (128 + AGAIN_MAX, lost));
        let only_third_goes = |_, to| (to != endpoint(3)).then_some(libc::EPERM);
        assert_eq!(send(in_turn, only_third_goes), (128 + 2 * AGAIN_MAX, 2 * lost));
    }

    #[test]
    fn no_datagram_is_lost_for_errors_of_others() {
        // Eight in a row, again and again.
        let fails = |calls, _| (calls % 9 != 8).then_some(libc::ECONNREFUSED);
        assert_eq!(send(|_| endpoint(1), fails), (128 * 9, 0));
        // One whose own destination is refused for another reason is tried again, too.
        let mut tries = Tries::default();
        tries.note_refused(endpoint(1), Some(libc::EPERM));
        tries.note_refused(endpoint(1), None);
        assert!(tries.allow_another(0, endpoint(1), libc::ECONNREFUSED));
        assert!(!tries.allow_another(1, endpoint(1), libc::EPERM));
    }
}

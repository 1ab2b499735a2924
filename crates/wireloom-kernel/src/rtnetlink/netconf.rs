//! Settings of interfaces that the kernel announces when somebody writes their sysctls (include/uapi/linux/netconf.h).

/// `RTM_NEWNETCONF`
pub(super) const NEW: u16 = 80;

/// `NETCONFA_IFINDEX`, `NETCONFA_RP_FILTER` and `NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN`. Of the sysctls that we set or
/// depend on, `src_valid_mark` and `send_redirects` are not announced.
const INDEX: u16 = 1;
const RP_FILTER: u16 = 3;
const IGNORE_ROUTES_WITH_LINKDOWN: u16 = 6;

/// `NETCONFA_IFINDEX_ALL`
const ALL: i32 = -1;

/// The bytes of `struct netconfmsg`, and of the head of an attribute (`struct rtattr`). Both are padded to 4.
const HEADER: usize = 4;

/// Where a setting changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `net.ipv4.conf.all`
    All,
    /// The interface with this index.
    Interface(u32),
}

/// Where a setting changed that we set or depend on; `None` when it is another one, or one for future interfaces.
pub(super) fn decode(payload: &[u8]) -> Option<Place> {
    let (mut place, mut concerns) = (None, false);
    let mut rest = payload.get(HEADER..)?;
    while let Some((head, after)) = rest.split_first_chunk::<HEADER>() {
        let [a, b, c, d] = *head;
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = after.get(..length.checked_sub(HEADER)?)?;
        match kind {
            INDEX => place = Some(i32::from_ne_bytes(value.try_into().ok()?)),
            RP_FILTER | IGNORE_ROUTES_WITH_LINKDOWN => concerns = true,
            _ => {}
        }
        rest = after.get(value.len().next_multiple_of(HEADER)..).unwrap_or_default();
    }
    match place.filter(|_| concerns)? {
        ALL => Some(Place::All),
        index => u32::try_from(index).ok().map(Place::Interface),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, i32)]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn only_settings_that_concern_us_are_found() {
        assert_eq!(decode(&message(&[(INDEX, 7), (RP_FILTER, 1)])), Some(Place::Interface(7)));
        assert_eq!(decode(&message(&[(INDEX, ALL), (RP_FILTER, 1)])), Some(Place::All));
        // Forwarding; the defaults of future interfaces.
        assert_eq!(decode(&message(&[(INDEX, 7), (2, 1)])), None);
        assert_eq!(decode(&message(&[(INDEX, -2), (RP_FILTER, 1)])), None);
        for cut_off in 0..20 {
            assert_eq!(decode(&message(&[(INDEX, 7), (RP_FILTER, 1)])[..cut_off]), None);
        }
    }
}

//! The eBPF programs of traffic control (`tc filter`).
//!
//! Those that are attached with `tcx` (Linux 6.6 and later) are not among them: only bpf(2) lists those.

use std::collections::BTreeSet;

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::errno::Errno;
use wireloom_plan::bypass::{Hook, Program};

use super::Rtnetlink;
use crate::error::Cause;

/// The indices of the interfaces on which there can be any: those with a `clsact` or an `ingress` qdisc.
pub(crate) fn places(netlink: &mut Rtnetlink) -> Result<BTreeSet<u32>, Cause> {
    let dumped = match netlink.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())) {
        // A kernel without traffic control.
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => return Ok(BTreeSet::new()),
        dumped => dumped?,
    };
    let places = dumped.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(message) => place(message),
        _ => None,
    });
    Ok(places.collect())
}

/// The programs on an interface, by its index, in both directions; none if it is gone.
pub(crate) fn observe(netlink: &mut Rtnetlink, interface: u32) -> Result<BTreeSet<Program>, Cause> {
    let mut programs = BTreeSet::new();
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut request = TcMessage::default();
        request.header.index = interface.cast_signed();
        request.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
        let dumped = match netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request)) {
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EINVAL)) => continue,
            dumped => dumped?,
        };
        programs.extend(dumped.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(message) => program(message),
            _ => None,
        }));
    }
    Ok(programs)
}

pub(super) fn place(message: &TcMessage) -> Option<u32> {
    let is_place =
        |kind: &TcAttribute| matches!(kind, TcAttribute::Kind(kind) if kind == "clsact" || kind == "ingress");
    message.attributes.iter().any(is_place).then_some(message.header.index.cast_unsigned())
}

/// `None` for a filter of another kind, and for the message that begins a list of filters, which has no handle.
pub(super) fn program(message: &TcMessage) -> Option<Program> {
    let kind = TcAttribute::Kind(TcFilterBpf::KIND.to_owned());
    if !message.attributes.contains(&kind) || message.header.handle == TcHandle::UNSPEC {
        return None;
    }
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
            _ => None,
        }),
        _ => None,
    });
    Some(Program { hook: Hook::Classifier, name })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    /// As the kernel writes it.
    fn read(handle: u16, kind: &str, options: Vec<TcOption>) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.index = 5;
        message.header.handle = TcHandle { major: 0, minor: handle };
        message.attributes = vec![TcAttribute::Kind(kind.to_owned()), TcAttribute::Options(options)];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        TcMessage::parse(bytes.as_slice()).unwrap()
    }

    #[test]
    fn programs_are_told_from_other_filters() {
        let name = TcOption::Bpf(TcFilterBpfOption::ProgName("cil_to_netdev".to_owned()));
        let expected =
            |name: Option<&str>| Some(Program { hook: Hook::Classifier, name: name.map(str::to_owned) });
        assert_eq!(program(&read(1, "bpf", vec![name.clone()])), expected(Some("cil_to_netdev")));
        assert_eq!(program(&read(1, "bpf", vec![])), expected(None));
        assert_eq!(program(&read(0, "bpf", vec![])), None, "the head of the list");
        assert_eq!(program(&read(1, "u32", vec![])), None);
    }

    #[test]
    fn the_places_for_programs_are_found() {
        assert_eq!(place(&read(0, "clsact", vec![])), Some(5));
        assert_eq!(place(&read(0, "ingress", vec![])), Some(5));
        assert_eq!(place(&read(0, "fq_codel", vec![])), None);
    }
}

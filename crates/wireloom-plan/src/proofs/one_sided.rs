//! Which proven nodes have not proved us: they still send in plaintext, which is refused.

use std::{collections::BTreeMap, time::Duration};

use crate::standing::Standings;

/// How long after the last refused packet a node is still said to send in plaintext.
pub const RECENT: Duration = Duration::from_secs(60);

/// Watches what the guard counts of each proven node's plaintext. Times are since 1970.
///
/// A node whose plaintext is refused has been proven for [`PATIENCE`](super::PATIENCE): before that, nothing counts.
#[derive(Debug, Clone, Default)]
pub struct OneSided {
    nodes: BTreeMap<String, Counted>,
}

#[derive(Debug, Clone)]
struct Counted {
    packets: u64,
    /// Between which counts it sent in plaintext lately: since when, and when that was seen last.
    sent: Option<(Duration, Duration)>,
}

impl OneSided {
    /// Takes how many packets from each node were refused so far, by name, and where this node stands with them.
    pub fn note<'a>(
        &mut self,
        refused_in: impl IntoIterator<Item = (&'a str, u64)>,
        standings: &Standings,
        now: Duration,
    ) {
        let mut before = std::mem::take(&mut self.nodes);
        let takes_none = |name: &str| standings.get(name).is_some_and(|standing| standing.ingress);
        for (name, packets) in refused_in.into_iter().filter(|(name, _)| takes_none(name)) {
            let counted = match before.remove(name) {
                // What was counted before the first look may be old.
                None => Counted { packets, sent: None },
                Some(Counted { packets: last, sent }) => {
                    // A table that was made anew counts from 0.
                    let rose = if packets < last { packets > 0 } else { packets > last };
                    let lately = sent.filter(|(_, seen)| now < *seen + RECENT);
                    let sent =
                        if rose { Some((lately.map_or(now, |(since, _)| since), now)) } else { lately };
                    Counted { packets, sent }
                }
            };
            self.nodes.insert(name.to_owned(), counted);
        }
    }

    /// The nodes that sent in plaintext lately, and since when.
    pub fn nodes(&self, now: Duration) -> BTreeMap<String, Duration> {
        let sent = self.nodes.iter().filter_map(|(name, counted)| {
            let (since, seen) = counted.sent?;
            (now < seen + RECENT).then(|| (name.clone(), since))
        });
        sent.collect()
    }
}

//! Sums of counters that come and go.

use std::collections::BTreeMap;

/// By how much counters have grown since they were first seen. A sum of the counters themselves would fall when one of
/// them goes, and Prometheus takes a counter that falls for one that began at 0 again: it would count the rest twice.
#[derive(Debug)]
pub(crate) struct Growth<K> {
    last: BTreeMap<K, u64>,
    is_first: bool,
}

impl<K> Default for Growth<K> {
    fn default() -> Self {
        Self { last: BTreeMap::new(), is_first: true }
    }
}

impl<K: Ord + Clone> Growth<K> {
    /// Takes the counters as they are now, and gives those that have grown to `add`, with how much. Those that are
    /// there at first count from then on. One that is new later, or has fallen, began at 0.
    pub(crate) fn take<'a>(&mut self, now: impl Iterator<Item = (&'a K, u64)>, mut add: impl FnMut(&K, u64))
    where
        K: 'a,
    {
        let mut next = BTreeMap::new();
        for (key, value) in now {
            let before = match self.last.get(key) {
                Some(last) if *last <= value => *last,
                None if self.is_first => value,
                _ => 0,
            };
            if value > before {
                add(key, value - before);
            }
            next.insert(key.clone(), value);
        }
        (self.last, self.is_first) = (next, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_growth_never_falls_and_counts_nothing_twice() {
        let mut growth = Growth::default();
        let mut sum = 0;
        let mut take = |counters: &[(char, u64)]| {
            growth.take(counters.iter().map(|(key, value)| (key, *value)), |_, more| sum += more);
            sum
        };
        assert_eq!(take(&[('a', 900), ('b', 100)]), 0, "what was before is not ours");
        assert_eq!(take(&[('a', 910), ('b', 100)]), 10);
        assert_eq!(take(&[('b', 101)]), 11, "one is gone");
        assert_eq!(take(&[('a', 5), ('b', 101)]), 16, "one is new");
        assert_eq!(take(&[('a', 2), ('b', 0)]), 18, "all began anew");
        assert_eq!(take(&[]), 18);
    }
}

//! The descriptors that a device has stored, by name.

/// The most that are kept, as many as systemd keeps with `FileDescriptorStoreMax=1024`. A device of 256 queues
/// (`MAX_TAP_QUEUES` of the kernel's drivers/net/tun.c) has three for each, and two listening sockets.
pub(super) const DESCRIPTORS_MAX: usize = 1024;

/// What a device has stored, and what it got from the device before. `D` is a descriptor.
#[derive(Debug)]
pub(super) struct Store<D>(Vec<Entry<D>>);

#[derive(Debug)]
struct Entry<D> {
    name: String,
    descriptor: D,
    /// The device got it at its start. It may store it again under the same name, or leave it stored, as with systemd.
    is_inherited: bool,
}

impl<D> Default for Store<D> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<D: Clone> FromIterator<(String, D)> for Store<D> {
    /// Those that are too many are dropped.
    fn from_iter<I: IntoIterator<Item = (String, D)>>(descriptors: I) -> Self {
        let mut store = Self::default();
        for (name, descriptor) in descriptors {
            store.add(name, descriptor);
        }
        store
    }
}

impl<D: Clone> Store<D> {
    /// Adds a descriptor. Those of that name that the device got at its start are dropped: they are the same one, or
    /// it has closed them. Those of that name that it has stored itself stay. Returns false when there are too many.
    pub(super) fn add(&mut self, name: String, descriptor: D) -> bool {
        self.0.retain(|entry| !entry.is_inherited || entry.name != name);
        if self.0.len() >= DESCRIPTORS_MAX {
            return false;
        }
        self.0.push(Entry { name, descriptor, is_inherited: false });
        true
    }

    /// Drops all of this name.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|entry| entry.name != name);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What the next device gets.
    pub(super) fn all(&self) -> Vec<(String, D)> {
        self.0.iter().map(|entry| (entry.name.clone(), entry.descriptor.clone())).collect()
    }

    /// The store of a device that gets all of these.
    pub(super) fn inherited(self) -> Self {
        Self(self.0.into_iter().map(|entry| Entry { is_inherited: true, ..entry }).collect())
    }

    /// As [`Self::inherited`], unless the device that succeeds has stored something itself.
    pub(super) fn succeeded_by(self, next: Self) -> Self {
        if next.0.is_empty() { self.inherited() } else { next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(store: &Store<u32>) -> Vec<(&str, u32)> {
        store.0.iter().map(|entry| (entry.name.as_str(), entry.descriptor)).collect()
    }

    #[test]
    fn what_a_device_stores_again_replaces_what_it_got() {
        let mut store = Store::default();
        for (name, descriptor) in [("tun", 1), ("tun", 2), ("udp", 3)] {
            assert!(store.add(name.into(), descriptor));
        }
        assert_eq!(names(&store), [("tun", 1), ("tun", 2), ("udp", 3)], "several have one name");
        let mut store = store.inherited();
        assert_eq!(store.all().len(), 3);
        assert!(store.add("tun".into(), 11) && store.add("tun".into(), 12));
        assert_eq!(names(&store), [("udp", 3), ("tun", 11), ("tun", 12)]);
        store.remove("tun");
        assert_eq!(names(&store), [("udp", 3)]);
    }

    #[test]
    fn a_successor_that_stores_nothing_leaves_the_store_as_it_is() {
        let filled = |descriptor| {
            let mut store = Store::default();
            assert!(store.add("udp".into(), descriptor));
            store
        };
        assert_eq!(names(&filled(1).succeeded_by(Store::default())), [("udp", 1)]);
        assert_eq!(names(&filled(1).succeeded_by(filled(2))), [("udp", 2)]);
    }

    #[test]
    fn the_unit_has_systemd_keep_as_many() {
        let unit = include_str!("../../../../deploy/systemd/wireloom-engine.service");
        let setting = format!("FileDescriptorStoreMax={DESCRIPTORS_MAX}");
        assert!(unit.lines().any(|line| line == setting), "{setting}");
    }

    #[test]
    fn the_store_has_a_bound() {
        let mut store = Store::default();
        for number in 0..DESCRIPTORS_MAX {
            assert!(store.add("udp".into(), number));
        }
        assert!(!store.add("udp".into(), 0));
        assert_eq!(store.len(), DESCRIPTORS_MAX);
    }
}

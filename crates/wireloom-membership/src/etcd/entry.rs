//! An entry of etcd as an object.

use etcd_client::KeyValue;

use super::layout;
use crate::{
    record::{NAME_MAX, RECORD_MAX},
    store::Object,
};

/// Whether an entry's name is not longer than any name with a meaning. Longer ones are ignored.
pub(super) fn is_readable(name: &str) -> bool {
    name.len() <= layout::NODES.len() + NAME_MAX
}

/// The name of an object: what follows the prefix.
pub(super) fn name(prefix: &str, entry: &KeyValue) -> String {
    String::from_utf8_lossy(entry.key().get(prefix.len()..).unwrap_or_default()).into_owned()
}

/// An entry as an object. Of a value that is too long for a record there is enough to see that.
pub(super) fn object(entry: &KeyValue) -> Object {
    let value = entry.value();
    let value = &value[..value.len().min(RECORD_MAX + 1)];
    Object {
        value: String::from_utf8_lossy(value).into_owned(),
        born: entry.create_revision().unsigned_abs(),
        uid: String::new(),
    }
}

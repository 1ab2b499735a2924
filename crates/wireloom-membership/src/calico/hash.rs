//! The label by which Calico's objects of one host are selected.

use data_encoding::BASE32_NOPAD;
use serde_json::Value;
use sha3::{Digest, Sha3_256};

/// The label of a BlockAffinity that names its host (`LabelHostnameHash` in api/pkg/apis/projectcalico/v3/constants.go
/// of Calico).
const LABEL: &str = "projectcalico.org/hostname-hash";

/// The label selector of the objects of this host. Calico before 3.31 writes no such label.
pub(crate) fn selector(host: &str) -> String {
    format!("{LABEL}={}", hash(host))
}

/// Whether an object, as JSON, has the label, whatever host it names.
pub(super) fn is_labelled(object: &str) -> bool {
    let object: Value = serde_json::from_str(object).unwrap_or_default();
    object["metadata"]["labels"][LABEL].is_string()
}

/// A name may be longer than the 63 characters that a label may have, so Calico hashes it (`hashHostnameForLabel` in
/// libcalico-go/lib/backend/model/block_affinity.go).
fn hash(host: &str) -> String {
    BASE32_NOPAD.encode(&Sha3_256::digest(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_objects_that_calico_wrote() {
        for (host, expected) in [
            ("n1", "DM7EHBDU4L3ELKRER4A46T6QMKAGARQI4CVWBO26S4I2IDAAW6CA"),
            ("n2", "KLDPLGRU6RU2JCBLZ72SMDRCHRZWT676HYB63W5R6FHDUORJBBUA"),
            ("n3", "KVKFHEC46DSBMSGMKTE67PVMJWWRA7AWJHGQN7CLW2HMLVROT3LQ"),
        ] {
            assert_eq!(selector(host), format!("projectcalico.org/hostname-hash={expected}"));
        }
    }
}

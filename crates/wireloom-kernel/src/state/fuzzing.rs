//! Doors for `fuzz/`.

use super::{
    creating::CREATING, identity::IDENTITY, left::LEFT, mesh::MESH, programmed::PROGRAMMED, proofs::PROOFS,
    record::Record, sysctls::SYSCTLS,
};

/// What is written of a record after its file has been read; `None` when no agent can have written the file.
pub type Rewrite = fn(&[u8]) -> Option<Vec<u8>>;

/// Every record of the state directory.
pub const RECORDS: [Rewrite; 7] = [
    |text| again(&MESH, text),
    |text| again(&IDENTITY, text),
    |text| again(&LEFT, text),
    |text| again(&PROOFS, text),
    |text| again(&SYSCTLS, text),
    |text| again(&CREATING, text),
    |text| again(&PROGRAMMED, text),
];

fn again<T>(record: &Record<T>, text: &[u8]) -> Option<Vec<u8>> {
    let value = (record.parse)(text).ok()?;
    Some((record.format)(&value).expect("what was read can be written"))
}

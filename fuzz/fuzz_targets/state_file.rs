//! The agent's own files: the records of the state directory, the saved guard and the run file. What no agent wrote is
//! refused, and what is read is written as something that is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom::fuzzing::run_file;
use wireloom_kernel::fuzzing::{nft, state::RECORDS};

fuzz_target!(|bytes: &[u8]| {
    let Some((which, text)) = bytes.split_first() else { return };
    let which = usize::from(*which) % (RECORDS.len() + 2);
    if let Some(rewrite) = RECORDS.get(which) {
        if let Some(written) = rewrite(text) {
            assert_eq!(rewrite(&written), Some(written));
        }
    } else if which == RECORDS.len() {
        let _ = str::from_utf8(text).map(|text| nft::is_saved_script(text.to_owned()));
    } else if let Some((written, said)) = run_file(text) {
        assert!(said.iter().all(|line| !line.is_empty()));
        assert_eq!(run_file(&written).expect("our own file").0, written);
    }
});

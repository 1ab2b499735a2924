//! `agent.toml`: whatever the text, it is settings or an error that says what is wrong and what to write.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(what) = wireloom::fuzzing::agent_toml(text) {
        assert!(!what.is_empty());
    }
});

//! The control socket: whatever the lines, they are a request or an error with a line number, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_engine::control::Parser;

fuzz_target!(|text: &[u8]| {
    let mut parser = Parser::default();
    for line in text.split(|byte| *byte == b'\n') {
        match parser.line(line, &|zone| (zone == "eth0").then_some(2)) {
            Ok(_) => {}
            Err(mistake) => assert!(mistake.line > 0),
        }
    }
});

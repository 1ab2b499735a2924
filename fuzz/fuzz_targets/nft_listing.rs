//! What `nft --json` lists of our table: anything but what we write is taken for altered, so the script that is saved
//! of it holds nothing but commands for our table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_kernel::fuzzing::nft;

const COMMANDS: [&str; 6] = [
    "add table inet wireloom",
    "delete table inet wireloom",
    "add set inet wireloom ",
    "add counter inet wireloom ",
    "add chain inet wireloom ",
    "add rule inet wireloom ",
];

fuzz_target!(|json: &[u8]| {
    let Some(script) = nft::script_of_listing(json, "wg0") else { return };
    let (comment, commands) = script.split_once('\n').expect("a comment");
    assert!(comment.starts_with("# "));
    for command in commands.lines() {
        let element = command.starts_with("add element inet wireloom ");
        assert!(element || COMMANDS.iter().any(|known| command.starts_with(known)), "{command}");
        assert_eq!(command.matches('"').count() % 2, 0, "{command}");
    }
    assert!(nft::is_saved_script(script));
});

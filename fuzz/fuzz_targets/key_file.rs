//! The files of the private key and of the preshared key: a key, which is written as it was read, or an error that does
//! not show what is in the file.
#![no_main]

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process,
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use wireloom::fuzzing::{preshared_key, private_key};
use wireloom_types::PrivateKey;

/// The directory is removed by who started us (`TMPDIR` of scripts/fuzz).
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = env::temp_dir().join(format!("wireloom-fuzz-{}", process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("our own directory");
    let file = directory.join("key");
    fs::write(&file, "").expect("our own file");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("our own file");
    file
});

fuzz_target!(|content: &[u8]| {
    fs::write(&*FILE, content).expect("our own file");
    let text = str::from_utf8(content).unwrap_or_default().trim();
    match private_key(&FILE) {
        Ok(key) => {
            let given = PrivateKey::from_base64(text).expect("what the file holds");
            assert_eq!(Some(given.expose_base64().to_string()), key);
        }
        Err(error) => assert!(!shows(&error, text, || private_key(&FILE).err()), "the content is shown"),
    }
    fs::write(&*FILE, content).expect("our own file");
    match preshared_key(&FILE) {
        Ok(key) => assert_eq!(key, text),
        Err(error) => assert!(!shows(&error, text, || preshared_key(&FILE).err()), "the content is shown"),
    }
});

/// Whether an error shows the content of the file. Words that it has about another content, too, are its own.
fn shows(error: &str, text: &str, error_again: impl Fn() -> Option<String>) -> bool {
    if text.len() < 12 || !error.contains(text) {
        return false;
    }
    fs::write(&*FILE, "x".repeat(text.len())).expect("our own file");
    !error_again().is_some_and(|other| other.contains(text))
}

//! Doors for `fuzz/`.

use wireloom_types::SourceCheck;

use super::uapi;
use crate::wireguard::DeviceState;

/// The two replies that a device was asked for.
#[must_use]
pub fn split(replies: &str) -> Option<(&str, &str)> {
    uapi::split(replies)
}

/// Reads the reply to `get=1`.
///
/// # Errors
/// In words.
pub fn device(reply: &str) -> Result<DeviceState, String> {
    uapi::parse_get_reply(reply).map_err(|error| error.to_string())
}

/// Reads the reply to `get_link=1`.
///
/// # Errors
/// In words.
pub fn source_check(reply: &str) -> Result<SourceCheck, String> {
    uapi::parse_link_reply(reply).map_err(|error| error.to_string())
}

/// Reads the reply to `set=1`.
///
/// # Errors
/// In words.
pub fn change(reply: &str) -> Result<(), String> {
    uapi::parse_set_reply(reply).map_err(|error| error.to_string())
}

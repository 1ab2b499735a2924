//! The exit statuses of `wireloom device` that mean something to who started it.

/// Another process has taken the interface over: who started this one starts no other. Every other end has 0, 1 or 101
/// (for a panic).
pub const HANDED_OVER: u8 = 10;

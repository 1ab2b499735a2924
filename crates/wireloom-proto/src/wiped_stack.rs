//! Wiping the stack behind calls that use secrets.

use std::hint::black_box;

/// More than the calls need that the device wraps: curve arithmetic takes the most, without optimisation about 10 KiB
/// and with it 3 KiB.
const WIPED: usize = 16 << 10;

/// Calls a function and then wipes the part of the stack that it used.
///
/// Secrets that lie on the heap are wiped where they lie, but on their way there and through the arithmetic the
/// compiler and the libraries copy them to the stack, where no `Drop` sees them.
pub fn on_wiped_stack<R>(call: impl FnOnce() -> R) -> R {
    let outcome = call_below(call);
    wipe_below();
    outcome
}

/// Has a frame of its own, which begins where that of [`wipe_below`] does.
#[inline(never)]
fn call_below<R>(call: impl FnOnce() -> R) -> R {
    call()
}

/// Overwrites what is below the caller's frame. The compiler must assume that [`black_box`] reads it.
#[inline(never)]
fn wipe_below() {
    let mut below = [0_u64; WIPED / 8];
    black_box(&mut below);
}

//! What the threads of the engine work with, whatever they carry: turns, wake-ups, busy polling, and the crypto
//! pool.

pub(crate) mod busy_poll;
pub(crate) mod crypto_pool;
pub(crate) mod limiter;
pub(crate) mod turn;
pub(crate) mod wake_up;

//! The two sides of a handshake.

use serde::{Deserialize, Serialize};

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// We sent the initiation. We renew the session when it gets old.
    Initiator,
    /// We sent the response. We send in the session once a message has arrived in it.
    Responder,
}

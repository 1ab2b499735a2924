//! The planner: `(cluster, settings, observed kernel) -> desired state -> ordered operations`.
//!
//! Pure: no I/O, no clock, no randomness. The shell observes the kernel, asks for the
//! operations, applies them and observes again.

pub mod cluster;
pub mod kernel;
pub mod key;
pub mod op;
pub mod settings;

//! The planner: `(cluster, settings, observed kernel) -> desired state -> ordered operations`.
//!
//! Pure: no I/O, no clock, no randomness. The shell observes the kernel, asks for the operations, applies
//! them and observes again.
//!
//! ```text
//!  Cluster  ─┐
//!  Settings ─┼─ desired() ─▶ Desired ─┐
//!  Host     ─┘                        ├─ diff() ─▶ [Op] ─▶ the shell, or Observed::apply_all()
//!                        Observed ────┘
//! ```
//!
//! [`planner::Planner`] holds the left half of the picture and updates it one changed node at a time.

pub mod address_range;
pub mod borrowed;
pub mod bypass;
pub mod cluster;
pub mod connections;
pub mod desired;
pub mod diff;
pub mod endpoint_name;
pub mod endpoints;
pub mod firewall;
pub mod health;
pub mod holdback;
pub mod leaving;
pub mod names;
pub mod observed;
pub mod op;
pub mod own_member;
pub mod own_record;
pub mod owner;
pub mod ownership;
pub mod paths;
pub mod planner;
pub mod proofs;
pub mod refusal;
pub mod removals;
pub mod routing;
pub mod settings;
pub mod standing;
pub mod sysctl;
mod touched;
mod tunnel_only;
pub mod warning;

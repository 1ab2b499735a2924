//! What the proofs promise:
//!
//! - `sticky`: how a node becomes proven, what it outlives, and the two ways back
//! - `given_up`: what a proven node gave up stays refused for a while
//! - `histories`: the same in arbitrary histories
//! - `one_sided`: who has not proved us
//! - `two_machines`: packets between two machines that learn of everything at different times
//!
//! `world` provides meshes and a clock.

mod given_up;
mod histories;
mod one_sided;
mod sticky;
mod two_machines;
mod world;

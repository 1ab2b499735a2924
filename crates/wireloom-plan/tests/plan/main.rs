//! What the planner promises, as a table of contents:
//!
//! - `properties`: from arbitrary kernels to arbitrary meshes
//! - `incremental`: one changed node at a time is the same as from nothing
//!
//! `world` is the ground they stand on: machines with in-memory kernels, and packets between them.

mod incremental;
mod properties;
mod universe;
mod world;

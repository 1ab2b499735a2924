//! What runs on the nodes, and the files that it reads.

pub mod agent;
pub mod control;
pub mod device;
pub mod felix;
pub mod guide;
pub mod mesh;
pub mod routing;

//! What runs on the nodes, and the files that it reads.

pub mod agent;
pub(crate) mod device;
pub mod guide;
pub mod mesh;
pub mod routing;

//! Link mode: peers are neighbours on a link (`--peer-lookup gateway`).

mod agent;
mod device;
mod errors;
mod firewall;
mod mesh;
mod next_hops;
mod routing;

//! Machines with in-memory kernels, and packets between them.

use std::net::IpAddr;

use ipnet::IpNet;
use wireloom_plan::key::PublicKey;

pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

//! The device or the agent itself is broken, or one of its files.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use wireloom_lab::{
    Layout, Promise,
    agent::Agent,
    mesh::{MEMBERS, SETTINGS},
};

use super::{Broken, SCOPED, assert_refused, expect_told};
use crate::{
    fixtures::{
        device::process,
        fleet::{Fleet, run},
    },
    wireloom,
};

/// A status takes no longer than this, whatever is broken.
const PROMPT: Duration = Duration::from_secs(4);

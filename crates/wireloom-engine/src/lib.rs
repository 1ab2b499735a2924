//! wireloom-engine

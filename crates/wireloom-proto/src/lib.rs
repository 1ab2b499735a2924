//! wireloom-proto

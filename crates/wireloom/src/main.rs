//! wireloom
fn main() {}

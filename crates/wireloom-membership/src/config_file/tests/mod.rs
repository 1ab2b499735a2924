//! Following a file, on a disk in memory and on the real one.

mod memory;
mod mistakes;
mod real;

//! Traffic between places, and what became of it.

mod capture;
mod matrix;
mod pinger;
pub mod probe;
mod stream;

pub use self::{
    capture::{Capture, Content, Packet},
    matrix::{Direction, Matrix, Measurement, Promise},
    pinger::{PingReport, Pinger},
    probe::{Cell, Wire},
    stream::{Stream, StreamReport},
};

//! Traffic between places, and what became of it.

mod capture;
mod matrix;
mod noise;
mod nonces;
mod numbered;
mod packet_socket;
mod pinger;
pub mod probe;
mod stream;

pub use self::{
    capture::{Capture, Content, Packet},
    matrix::{Direction, Matrix, Measurement, Promise},
    noise::Noise,
    nonces::{NonceReport, Nonces},
    numbered::{Numbered, NumberedReport},
    pinger::{PingReport, Pinger},
    probe::{Cell, Wire},
    stream::{Stream, StreamReport},
};

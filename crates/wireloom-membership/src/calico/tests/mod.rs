//! Objects by themselves, and the source against the twin of the API server.

mod objects;
mod source;

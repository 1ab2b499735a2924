//! Batches: datagrams handled together, in memory that is allocated once.
//!
//! An [`InboundBatch`] is filled by the UDP port and then opened. An [`OutboundBatch`] is filled with messages and
//! then sealed; only a [`SealedBatch`] can be sent. Both may go through the crypto pool in between.

mod inbound;
mod job;
mod outbound;

pub(crate) use self::{
    inbound::{INBOUND_MAX, InboundBatch},
    job::CryptoJob,
    outbound::{GsoRun, OUTBOUND_MAX, OutboundBatch, Pending, SealedBatch},
};

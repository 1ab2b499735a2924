//! The two kinds of work of the crypto pool.

use super::{InboundBatch, OutboundBatch};
use crate::runtime::crypto_pool::{BatchJob, Job};

/// A batch of either direction, on its way to a helper.
pub(crate) enum CryptoJob {
    Seal(BatchJob<OutboundBatch>),
    Decrypt(BatchJob<InboundBatch>),
}

impl Job for CryptoJob {
    fn run(self) {
        match self {
            Self::Seal(job) => job.run(),
            Self::Decrypt(job) => job.run(),
        }
    }
}

impl From<BatchJob<OutboundBatch>> for CryptoJob {
    fn from(job: BatchJob<OutboundBatch>) -> Self {
        Self::Seal(job)
    }
}

impl From<BatchJob<InboundBatch>> for CryptoJob {
    fn from(job: BatchJob<InboundBatch>) -> Self {
        Self::Decrypt(job)
    }
}

//! How much has gone through a disk.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread counts up and others look at.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Requests that a disk has carried out, and their data in bytes.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct DiskCounts {
    pub reads: Count,
    pub read_bytes: Count,
    pub writes: Count,
    pub write_bytes: Count,
    pub flushes: Count,
    /// Also those that ask for zeroes.
    pub discards: Count,
    /// Requests that have failed.
    pub errors: Count,
    /// Times that a request had to wait for the disk's limit.
    pub throttled: Count,
}

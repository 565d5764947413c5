//! Counters of a disk's requests, for its owner on another thread.

use std::sync::atomic::AtomicU64;

/// The requests of a disk since the guest's last reset, and their data in bytes.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct DiskCounts {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub flushes: AtomicU64,
    /// Includes write-zeroes requests.
    pub discards: AtomicU64,
    /// Failed requests.
    pub errors: AtomicU64,
    /// Waits for the disk's limit.
    pub throttled: AtomicU64,
}

//! What has gone through a disk, for its owner, on another thread, to look at.

use std::sync::atomic::AtomicU64;

/// Requests that a disk has carried out since the guest's last reset, and their data in bytes.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct DiskCounts {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub flushes: AtomicU64,
    /// Also those that ask for zeroes.
    pub discards: AtomicU64,
    /// Requests that have failed.
    pub errors: AtomicU64,
    /// Times that a request had to wait for the disk's limit.
    pub throttled: AtomicU64,
}

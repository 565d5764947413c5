//! Counters of a vsock device's packets and connections, for its owner on another thread.

use std::sync::atomic::AtomicU64;

/// What has gone through a vsock device since it was made: received is what the guest gets.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct VsockCounts {
    pub rx_packets: AtomicU64,
    /// Without headers.
    pub rx_bytes: AtomicU64,
    pub tx_packets: AtomicU64,
    /// Without headers.
    pub tx_bytes: AtomicU64,
    /// Connections that were made or asked for.
    pub added: AtomicU64,
    /// Those that have ended.
    pub removed: AtomicU64,
}

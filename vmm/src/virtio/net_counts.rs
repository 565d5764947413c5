//! Counters of a network card's frames, for its owner on another thread.

use std::sync::atomic::AtomicU64;

/// The frames of a network card since the guest's last reset, and their bytes without headers of virtio.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct NetCounts {
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// Frames that the guest had no buffer for.
    pub rx_dropped: AtomicU64,
    /// Waits for the limit of what is received.
    pub rx_throttled: AtomicU64,
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that the other end did not take, or that were none.
    pub tx_dropped: AtomicU64,
    /// Waits for the limit of what is sent.
    pub tx_throttled: AtomicU64,
}

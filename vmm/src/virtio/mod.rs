//! virtio devices (virtio 1.2) behind virtio-mmio.
//!
//! A device sees requests, never rings, registers or threads. [`transport`] moves it to a thread
//! of its own when the driver is ready and back when the driver resets it.

pub mod block;
pub mod buffers;
pub mod mmio;
pub mod queue;
pub mod rng;
pub mod transport;

#[cfg(test)]
mod block_tests;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub mod contract;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub mod test_driver;

use anyhow::Result;

use queue::Virtqueue;

/// What a device has to tell and do.
///
/// All calls but [`VirtioDevice::handle`] come from a vCPU's thread while the device is stopped.
pub trait VirtioDevice: Send + 'static {
    /// Device ID (virtio 1.2, chapter 5).
    fn id(&self) -> u32;
    /// For threads and messages.
    fn name(&self) -> &str;
    /// The most entries that each queue can have: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Device-specific feature bits that are offered.
    fn features(&self) -> u64 {
        0
    }
    /// The configuration space, which the driver only reads.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// The driver is ready and has accepted `features`.
    fn activate(&mut self, _features: u64) {}
    /// Serves queue `index`, which has been kicked. Runs on the device's own thread and may
    /// block. A request that is wrong is answered; an error means that the queue itself cannot
    /// be understood, and sets DEVICE_NEEDS_RESET.
    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()>;
}

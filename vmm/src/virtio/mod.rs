//! virtio devices (virtio 1.2) behind virtio-mmio.
//!
//! A device sees requests, never rings, registers or threads. [`transport`] moves it to a thread
//! of its own when the driver is ready and back when the driver resets it.

pub mod balloon;
pub mod balloon_handle;
pub mod block;
pub mod disk_counts;
pub mod mem;
pub mod mem_handle;
pub mod mmio;
pub mod queue;
pub mod rate;
pub mod registers;
pub mod rng;
pub mod transport;

#[cfg(test)]
mod balloon_tests;
#[cfg(test)]
mod block_tests;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub mod contract;
#[cfg(test)]
mod mem_tests;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub mod test_driver;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use crate::worker::ThreadKind;
use queue::{Interrupt, Virtqueue};

/// What a device has to tell and do.
///
/// All calls but [`VirtioDevice::handle`] and the one after it come from a vCPU's thread while the device is stopped.
pub trait VirtioDevice: Any + Send {
    /// Device ID (virtio 1.2, chapter 5).
    fn id(&self) -> u32;
    /// For threads and messages.
    fn name(&self) -> &str;
    /// The most entries that each queue can have: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;
    /// What its thread may do, in a jail.
    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::Device
    }
    /// Device-specific feature bits that are offered.
    fn features(&self) -> u64 {
        0
    }
    /// The configuration space.
    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Vec::new())
    }
    /// The driver is ready.
    fn activate(&mut self, _ready: &Ready) {}
    /// The driver has reset the device.
    fn reset(&mut self) {}
    /// Serves queue `index`, which has been kicked. Runs on the device's own thread and may
    /// block. A request that is wrong is answered; an error means that the queue itself cannot
    /// be understood, and sets DEVICE_NEEDS_RESET.
    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()>;
    /// When all queues are to be served again without a kick, for requests that were left in them. Asked
    /// after each `handle`, on the same thread.
    fn resume_at(&mut self) -> Option<Instant> {
        None
    }
}

/// What a device gets when its driver is ready.
pub struct Ready<'a> {
    /// The features that the driver has accepted.
    pub features: u64,
    /// Tells the driver that the configuration space has changed.
    pub interrupt: &'a Arc<Interrupt>,
    /// One for each queue: written to, it makes the device serve it.
    pub kicks: &'a [Arc<EventFd>],
}

/// A device's configuration space. When it has changed, its driver's [`Registers`](registers::Registers) are to show it.
pub trait ConfigSpace: Send + Sync {
    /// All of it.
    fn read(&self) -> Vec<u8>;
    /// The driver writes a word at `offset`, a multiple of 4 that can be beyond the end.
    fn write(&self, _offset: usize, _value: u32) {}
}

/// One that never changes.
impl ConfigSpace for Vec<u8> {
    fn read(&self) -> Vec<u8> {
        self.clone()
    }
}

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
#[cfg(test)]
pub mod test_log;

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use rustix::event::PollFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::worker::ThreadKind;
use queue::{Interrupt, Virtqueue};

/// A virtio device.
///
/// Until the driver is ready, and after its reset, the device is stopped: a vCPU's thread, or the machine's owner, calls
/// it then. In between it is on a thread of its own, which calls [`VirtioDevice::handle`],
/// [`VirtioDevice::descriptors`], [`VirtioDevice::descriptor_ready`] and [`VirtioDevice::resume_at`], and nobody else
/// calls anything. A pause of the machine stops the thread between two of these calls.
pub trait VirtioDevice: Any + Send {
    /// Device ID (virtio 1.2, chapter 5).
    fn id(&self) -> u32;
    /// A name for threads, at most 15 bytes, and messages.
    fn name(&self) -> &str;
    /// The most entries that each queue can have: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;
    /// What its thread does: the program decides what a thread of this kind may do.
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
    /// The driver is ready: the device goes to its thread next.
    fn activate(&mut self, _driver: &Driver) {}
    /// The driver has reset the device, or the device's thread was stopped for that. No request is in flight.
    fn reset(&mut self) {}
    /// Serves queue `index`, which has been kicked. May block for as long as one request takes. A request that is wrong
    /// is answered; an error means that the queue itself cannot be followed, and sets DEVICE_NEEDS_RESET.
    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()>;
    /// The descriptors that the thread waits for besides the queues (a tap, a socket), and for what. Asked before each
    /// wait: one that has nothing to do now, for want of buffers, is left with empty flags.
    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }
    /// Serves the descriptor with this index, which is ready, or has failed. An error as for [`VirtioDevice::handle`].
    fn descriptor_ready(&mut self, _index: usize, _queues: &mut [Virtqueue]) -> Result<()> {
        Ok(())
    }
    /// When all queues are to be served again without a kick, for requests that were left in them. Asked after each
    /// queue or descriptor that was served.
    fn resume_at(&mut self) -> Option<Instant> {
        None
    }
}

/// A driver that is ready, as its device sees it.
pub struct Driver<'a> {
    /// The features that the driver has accepted.
    pub features: u64,
    /// Raised when the configuration space has changed.
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

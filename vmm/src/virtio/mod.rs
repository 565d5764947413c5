//! virtio devices (virtio 1.2) behind virtio-mmio.
//!
//! A device sees requests, never rings, registers or threads. [`transport`] moves it to a thread
//! of its own when the driver is ready and back when the driver resets it.

pub mod balloon;
pub mod balloon_handle;
pub mod block;
mod block_request;
mod device_work;
pub mod disk_counts;
pub mod mem;
pub mod mem_handle;
pub mod mmio;
pub mod net;
pub mod net_counts;
mod net_room;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod saved;
pub mod transport;
pub mod vhost_user;
pub mod vsock;
pub mod vsock_counts;

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
#[cfg(test)]
mod net_interrupt_tests;
#[cfg(test)]
mod net_tests;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub mod test_driver;
#[cfg(test)]
pub mod test_log;
#[cfg(test)]
mod vhost_user_tests;
#[cfg(test)]
mod vsock_tests;

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use rustix::event::PollFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::worker::ThreadKind;
use queue::{Interrupt, Virtqueue};
use saved::DeviceSaved;

/// A virtio device.
///
/// Before the driver is ready, and after its reset, the device is stopped: its methods are called on a vCPU's thread,
/// or by the machine's owner. In between it is on a thread of its own, which alone calls [`VirtioDevice::start`],
/// [`VirtioDevice::handle`], [`VirtioDevice::descriptors`], [`VirtioDevice::descriptor_ready`] and [`VirtioDevice::resume_at`]. A pause of the
/// machine stops the thread between two of these calls.
pub trait VirtioDevice: Any + Send {
    /// Device ID (virtio 1.2, chapter 5).
    fn id(&self) -> u32;
    /// The name for its thread, at most 15 bytes, and for messages.
    fn name(&self) -> &str;
    /// The maximum size of each queue: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;
    /// The kind of its thread, by which the program limits the thread's rights.
    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::Device
    }
    /// The device-specific feature bits that are offered.
    fn features(&self) -> u64 {
        0
    }
    /// The configuration space.
    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Vec::new())
    }
    /// What is saved of the device besides its queues and registers. It is stopped.
    fn save(&self) -> DeviceSaved {
        DeviceSaved::Nothing
    }
    /// Sets what [`VirtioDevice::save`] has returned, in a new device; `activate` follows if there is a driver. An error
    /// if that does not fit the device.
    fn restore(&mut self, _state: &DeviceSaved) -> Result<()> {
        Ok(())
    }
    /// The driver is ready: the device moves to its thread next.
    fn activate(&mut self, _driver: &Driver) {}
    /// The driver has reset the device, or its thread was stopped for a reset. No request is in flight.
    fn reset(&mut self) {}
    /// Whether its thread serves queues that are kicked; if not, another process does.
    fn takes_kicks(&self) -> bool {
        true
    }
    /// The thread has started.
    fn start(&mut self, _queues: &mut [Virtqueue]) {}
    /// Serves queue `index`, which was kicked. May block for the time of one request. A wrong request is completed with
    /// an error status; an error here means that the queue itself is invalid, and sets DEVICE_NEEDS_RESET.
    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()>;
    /// The descriptors that the thread polls besides the queues (a tap, a socket), and their events. Called before each
    /// wait; a descriptor without a use at present, for want of buffers, has empty flags.
    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }
    /// Serves the descriptor with this index, which is ready or has failed. An error as for [`VirtioDevice::handle`].
    fn descriptor_ready(&mut self, _index: usize, _queues: &mut [Virtqueue]) -> Result<()> {
        Ok(())
    }
    /// The thread is about to stop: completes what is in flight. Returns whether nothing is left by `until`; if not, the
    /// device is lost to its driver.
    fn settle(&mut self, _queues: &mut [Virtqueue], _until: Instant) -> bool {
        true
    }
    /// When all queues are to be served again without a kick, for requests that were left in them. Asked after each
    /// queue or descriptor that was served.
    fn resume_at(&mut self) -> Option<Instant> {
        None
    }
}

/// The properties of a driver that is ready.
pub struct Driver<'a> {
    /// The features that the driver has accepted.
    pub features: u64,
    /// To be raised when the configuration space has changed.
    pub interrupt: &'a Arc<Interrupt>,
    /// One for each queue: a write has the device serve the queue.
    pub kicks: &'a [Arc<EventFd>],
}

/// A device's configuration space. After a change, the driver's [`Registers`](registers::Registers) have to be updated.
pub trait ConfigSpace: Send + Sync {
    /// All bytes.
    fn read(&self) -> Vec<u8>;
    /// The driver writes a word at `offset`, a multiple of 4 that can be beyond the end.
    fn write(&self, _offset: usize, _value: u32) {}
}

/// A configuration space that never changes.
impl ConfigSpace for Vec<u8> {
    fn read(&self) -> Vec<u8> {
        self.clone()
    }
}

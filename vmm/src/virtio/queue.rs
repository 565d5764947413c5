//! A virtqueue as a device sees it: a sequence of requests.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::registers::Registers;
use crate::memory::GuestRam;
use crate::memory::buffers::Buffers;

/// InterruptStatus bit: a buffer was used (virtio 1.2, 4.2.2).
const USED_BUFFER: u32 = 1 << 0;
/// InterruptStatus bit: the configuration or the device's status changed.
const CONFIG_CHANGE: u32 = 1 << 1;

/// How long a queue is served before the next one. A time and not a number, because the driver chooses how large
/// requests are. Miri is too slow for 10 ms.
const TURN: Duration = Duration::from_millis(if cfg!(miri) { 10_000 } else { 10 });

/// A device's interrupt line, and the registers that show its cause to the driver.
pub struct Interrupt {
    pub(super) registers: Arc<Registers>,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`, an irqfd.
    pub fn new(registers: Arc<Registers>, line: EventFd) -> Self {
        Self { registers, line }
    }

    /// Interrupts the driver for a change of the configuration space or of the device's status.
    pub fn config_changed(&self) {
        self.registers.show_config();
        self.raise(CONFIG_CHANGE);
    }

    fn raise(&self, bits: u32) {
        self.registers.set_bits(VIRTIO_MMIO_INTERRUPT_STATUS, bits);
        // Cannot fail: KVM empties the counter.
        let _ = self.line.write(1);
    }
}

/// A request: the driver's data, and buffers for the response.
pub struct Chain<'a> {
    /// Buffers that the device may read.
    pub readable: Buffers<'a>,
    /// Buffers that the device may write.
    pub writable: Buffers<'a>,
}

/// A queue of requests, with the interrupt and the kick.
pub struct Virtqueue {
    queue: Queue,
    ram: GuestRam,
    interrupt: Arc<Interrupt>,
    kick: Arc<EventFd>,
}

impl Virtqueue {
    /// A queue that the driver has set up, in guest memory `ram`.
    pub fn new(queue: Queue, ram: GuestRam, interrupt: Arc<Interrupt>, kick: Arc<EventFd>) -> Self {
        Self { queue, ram, interrupt, kick }
    }

    /// The guest memory of the queue.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Calls `serve` for each request, which is completed with the number of written bytes that it returns. Fails when
    /// a ring or chain of the driver's is invalid.
    pub fn serve_each(&mut self, mut serve: impl FnMut(&mut Chain) -> Result<u32>) -> Result<()> {
        self.serve_some(|chain| serve(chain).map(Some))
    }

    /// As [`Self::serve_each`]; but a request for which `serve` returns `None` stays in the queue, with all after it,
    /// until the next kick.
    ///
    /// A driver that keeps adding requests cannot keep the device from stopping, nor its other queues from being
    /// served: after its turn the queue kicks itself and returns.
    pub fn serve_some(
        &mut self,
        mut serve: impl FnMut(&mut Chain) -> Result<Option<u32>>,
    ) -> Result<()> {
        let ram = self.ram.clone();
        let end = Instant::now() + TURN;
        self.queue.disable_notification(&ram)?;
        while Instant::now() < end {
            let Some((head, mut chain)) = next_chain(&mut self.queue, &ram)? else {
                // A request may have come before notifications were enabled.
                if !self.queue.enable_notification(&ram)? {
                    return Ok(());
                }
                self.queue.disable_notification(&ram)?;
                continue;
            };
            let Some(written) = serve(&mut chain)? else {
                self.queue.go_to_previous_position();
                return Ok(());
            };
            self.queue.add_used(&ram, head, written)?;
            if wants_interrupt(&mut self.queue, &ram)? {
                self.interrupt.raise(USED_BUFFER);
            }
        }
        Ok(self.kick.write(1)?)
    }
}

/// Whether the driver wants an interrupt for the request that was just completed.
fn wants_interrupt(queue: &mut Queue, ram: &GuestRam) -> Result<bool> {
    if queue.event_idx_enabled() {
        return Ok(queue.needs_notification(ram)?);
    }
    // The driver clears the flag before its last read of the used index (virtio 1.2, 2.7.7).
    fence(Ordering::SeqCst);
    let flags: u16 = ram.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)?;
    Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Takes the next request from the ring, if there is one, and checks all of it.
fn next_chain<'a>(queue: &mut Queue, ram: &'a GuestRam) -> Result<Option<(u16, Chain<'a>)>> {
    let size = usize::from(queue.size());
    let mut next = queue.iter(ram).context("available ring")?.next();
    if next.is_none() && queue.avail_idx(ram, Ordering::Acquire)?.0 != queue.next_avail() {
        // A request that has just come; or the ring is in memory that was unplugged.
        next = queue.iter(ram).context("available ring")?.next();
        ensure!(next.is_some(), "an available ring that leaves RAM");
    }
    let Some(descriptors) = next else { return Ok(None) };
    let head = descriptors.head_index();
    let mut chain = Chain { readable: Buffers::default(), writable: Buffers::default() };
    let (mut count, mut ended) = (0, false);
    for descriptor in descriptors {
        count += 1;
        ensure!(count <= size, "a chain of more than {size} descriptors");
        let buffers = if descriptor.is_write_only() {
            &mut chain.writable
        } else {
            ensure!(chain.writable.is_empty(), "a readable descriptor after a writable one");
            &mut chain.readable
        };
        let len = descriptor.len() as usize;
        for slice in ram.get_slices(descriptor.addr(), len) {
            buffers.push(slice.context("a descriptor that leaves RAM")?);
        }
        ended = !descriptor.has_next();
    }
    // The iterator stops silently at an invalid descriptor.
    ensure!(ended, "a descriptor chain without an end");
    Ok(Some((head, chain)))
}

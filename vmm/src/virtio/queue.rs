//! A virtqueue as a device sees it: a sequence of requests.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_STATUS;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};
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

    /// The interrupt line.
    pub(super) fn line(&self) -> &EventFd {
        &self.line
    }

    /// Interrupts the driver for a change of the configuration space or of the device's status.
    pub fn config_changed(&self) {
        self.registers.show_config();
        self.raise(CONFIG_CHANGE);
    }

    /// Interrupts the driver for requests that another process has completed.
    pub(super) fn used(&self) {
        self.raise(USED_BUFFER);
    }

    /// Raises the line once more if it shows a cause.
    pub(super) fn raise_again(&self) {
        if self.registers.get(VIRTIO_MMIO_INTERRUPT_STATUS) != 0 {
            self.raise(0);
        }
    }

    fn raise(&self, bits: u32) {
        self.registers.set_bits(VIRTIO_MMIO_INTERRUPT_STATUS, bits);
        // Cannot fail: KVM empties the counter.
        let _ = self.line.write(1);
    }
}

/// A request: the driver's data, and buffers for the response.
pub struct Chain<'a> {
    /// Index of its first descriptor, by which it is completed.
    pub head: u16,
    /// What its buffers are in.
    pub ram: &'a Arc<GuestRam>,
    /// What the device may read.
    pub readable: Buffers<'a>,
    /// Buffers that the device may write.
    pub writable: Buffers<'a>,
}

/// What has become of a request that was to be served.
pub enum Served {
    /// It is completed, with this many bytes written.
    Done(u32),
    /// It will be completed by [`Virtqueue::complete`].
    InFlight,
    /// It stays in the queue, with all after it, until the next kick.
    Stays,
}

/// What is left in a queue that was served.
pub enum Left {
    /// No request.
    Nothing,
    /// A request that stays for now, and all after it.
    Waits,
    /// Perhaps more, but the turn is over.
    More,
}

/// A queue's turn.
pub struct Turn(Instant);

impl Turn {
    /// One that begins now.
    pub fn begin() -> Self {
        Self(Instant::now() + TURN)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

/// The bytes of an answer; none: not now.
impl From<Option<u32>> for Served {
    fn from(written: Option<u32>) -> Self {
        written.map_or(Self::Stays, Self::Done)
    }
}

/// A queue of requests, with what it takes to answer them.
pub struct Virtqueue {
    queue: Queue,
    ram: Arc<GuestRam>,
    interrupt: Arc<Interrupt>,
    kick: Arc<EventFd>,
    /// How many requests were completed that the driver has got no interrupt for.
    completed: u16,
}

impl Virtqueue {
    /// A queue that the driver has set up, in guest memory `ram`.
    pub fn new(
        queue: Queue,
        ram: Arc<GuestRam>,
        interrupt: Arc<Interrupt>,
        kick: Arc<EventFd>,
    ) -> Self {
        Self { queue, ram, interrupt, kick, completed: 0 }
    }

    /// Whether the driver has enabled it, and not taken it back.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// The driver has taken it back: nothing is served any more.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
    }

    /// Where it is, and how far it was served.
    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Its size, the index in the available ring up to which it was served, and the addresses of descriptors, available
    /// and used ring: for another process that serves it.
    pub fn layout(&self) -> (u16, u16, [u64; 3]) {
        let queue = &self.queue;
        let places = [queue.desc_table(), queue.avail_ring(), queue.used_ring()];
        (queue.size(), queue.next_avail(), places)
    }

    /// Another process has served it up to this index of the available ring.
    pub fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    /// The guest memory of the queue.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Calls `serve` for each request; it returns how many bytes it wrote, which completes the
    /// request. Fails when the driver made a ring or chain that cannot be followed.
    pub fn serve_each(&mut self, mut serve: impl FnMut(&mut Chain) -> Result<u32>) -> Result<()> {
        self.serve_some(|chain| serve(chain).map(Served::Done))
    }

    /// As [`Self::serve_each`]; but a request may be completed later, or stay in the queue.
    ///
    /// A driver that keeps adding requests keeps neither the device from being stopped nor its
    /// other queues from being served: after its turn the queue kicks itself and returns. There is one interrupt for
    /// what was completed together.
    pub fn serve_some(
        &mut self,
        mut serve: impl FnMut(&mut Chain) -> Result<Served>,
    ) -> Result<()> {
        let turn = Turn::begin();
        loop {
            let left = self.serve_available(&turn, &mut serve);
            self.interrupt()?;
            if self.ends(left?)? {
                return Ok(());
            }
        }
    }

    /// How many chains the driver has made available that are not served yet.
    pub fn waiting(&self) -> Result<u16> {
        let available = self.queue.avail_idx(&*self.ram, Ordering::Acquire)?.0;
        Ok(available.wrapping_sub(self.queue.next_avail()))
    }

    /// Serves what is in the queue, without kicks and without an interrupt; returns why it has stopped.
    pub fn serve_available(
        &mut self,
        turn: &Turn,
        mut serve: impl FnMut(&mut Chain) -> Result<Served>,
    ) -> Result<Left> {
        if !self.is_ready() {
            return Ok(Left::Waits);
        }
        let ram = self.ram.clone();
        self.queue.disable_notification(&*ram)?;
        while !turn.is_over() {
            let Some(mut chain) = next_chain(&mut self.queue, &ram)? else {
                return Ok(Left::Nothing);
            };
            match serve(&mut chain)? {
                Served::Done(written) => self.complete(chain.head, written)?,
                Served::InFlight => {}
                Served::Stays => {
                    self.queue.go_to_previous_position();
                    return Ok(Left::Waits);
                }
            }
        }
        Ok(Left::More)
    }

    /// Whether serving the queue, of which `left` was left, ends with the next kick; if not, more has come meanwhile.
    pub fn ends(&mut self, left: Left) -> Result<bool> {
        match left {
            // Something may have come before kicks were on again.
            Left::Nothing => Ok(!self.queue.enable_notification(&*self.ram)?),
            Left::Waits => Ok(true),
            Left::More => self.kick().map(|()| true),
        }
    }

    /// Has the device serve the queue again.
    pub fn kick(&self) -> Result<()> {
        Ok(self.kick.write(1)?)
    }

    /// Completes the request whose first descriptor is `head`, of which `written` bytes were written. The driver's
    /// interrupt waits for [`Self::interrupt`].
    pub fn complete(&mut self, head: u16, written: u32) -> Result<()> {
        self.complete_together(&[(head, written)])
    }

    /// Completes several requests, each its first descriptor and the bytes written: the driver sees all or none of them.
    pub fn complete_together(&mut self, requests: &[(u16, u32)]) -> Result<()> {
        let Some((&(head, written), others)) = requests.split_last() else { return Ok(()) };
        let first = self.queue.next_used();
        for (at, (head, written)) in (0..).zip(others) {
            let index = first.wrapping_add(at) % self.queue.size();
            let place = 4 + 8 * u64::from(index); // struct virtq_used (virtio 1.2, 2.7.8)
            let element = [u32::from(*head), *written];
            let address = GuestAddress(self.queue.used_ring()).checked_add(place);
            self.ram.write_obj(element, address.context("a used ring that leaves RAM")?)?;
        }
        // Below the size of a queue.
        self.queue.set_next_used(first.wrapping_add(others.len() as u16));
        self.queue.add_used(&*self.ram, head, written)?;
        self.completed = self.completed.saturating_add(requests.len() as u16);
        Ok(())
    }

    /// Puts the last `count` requests that were taken back into the queue.
    pub fn give_back(&mut self, count: usize) {
        (0..count).for_each(|_| self.queue.go_to_previous_position());
    }

    /// Interrupts the driver if it wants that for what was completed since the last time; returns whether anything was.
    pub fn interrupt(&mut self) -> Result<bool> {
        let completed = std::mem::take(&mut self.completed);
        if completed > 0 && wants_interrupt(&self.queue, &self.ram, completed)? {
            self.interrupt.raise(USED_BUFFER);
        }
        Ok(completed > 0)
    }
}

/// Whether the driver wants an interrupt for the last `completed` requests.
fn wants_interrupt(queue: &Queue, ram: &GuestRam, completed: u16) -> Result<bool> {
    // The driver changes what is read here before its last read of the used index (virtio 1.2, 2.7.7 and 2.7.10).
    fence(Ordering::SeqCst);
    let read = |offset| -> Result<u16> {
        let address = GuestAddress(queue.avail_ring()).checked_add(offset);
        Ok(ram.load(address.context("an available ring that leaves RAM")?, Ordering::Relaxed)?)
    };
    if !queue.event_idx_enabled() {
        return Ok(u32::from(read(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    let used_event = read(4 + 2 * u64::from(queue.size()))?;
    // Whether the used index has passed it: the index goes around.
    Ok(queue.next_used().wrapping_sub(used_event).wrapping_sub(1) < completed)
}

/// Takes the next request from the ring, if there is one, and checks all of it.
fn next_chain<'a>(queue: &mut Queue, shared: &'a Arc<GuestRam>) -> Result<Option<Chain<'a>>> {
    let (size, ram) = (usize::from(queue.size()), &**shared);
    let mut next = queue.iter(ram).context("available ring")?.next();
    if next.is_none() && queue.avail_idx(ram, Ordering::Acquire)?.0 != queue.next_avail() {
        // A request that has just come; or the ring is in memory that was unplugged.
        next = queue.iter(ram).context("available ring")?.next();
        ensure!(next.is_some(), "an available ring that leaves RAM");
    }
    let Some(descriptors) = next else { return Ok(None) };
    let head = descriptors.head_index();
    let (readable, writable) = Default::default();
    let mut chain = Chain { head, ram: shared, readable, writable };
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
    Ok(Some(chain))
}

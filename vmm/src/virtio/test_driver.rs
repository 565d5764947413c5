//! Plays the guest's driver without KVM: registers, rings, and waits that end.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::mmio::Mmio;
use super::transport::Transport;
use crate::bus::BusDevice;
use crate::memory::{self, GuestRam};

/// RAM starts at zero, and a second region is behind a gap.
pub const RAM_SIZE: u64 = 1 << 20;
pub const HIGH_RAM: u64 = 1 << 32;
pub const HIGH_RAM_SIZE: u64 = 1 << 16;
/// RAM from here to `RAM_SIZE` is for the data of requests.
pub const DATA: u64 = 0x8_0000;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// InterruptStatus bits.
pub const USED_BUFFER: u32 = 1;
pub const CONFIG_CHANGE: u32 = 2;

/// Longer than any response takes, however busy the host.
const PATIENCE: Duration = Duration::from_secs(10);

/// A buffer of a request: address, length, and whether the device may write it.
pub type Buffer = (u64, u32, bool);

/// A driver and its device.
pub struct Driver {
    pub mmio: Mmio,
    pub ram: GuestRam,
    /// The pages of the device's registers.
    pub pages: Weak<MmapRegion>,
    /// The queue of the requests that tests of all devices make.
    pub main: usize,
    line: EventFd,
    queues: Vec<Ring>,
}

/// The driver's side of a queue.
#[derive(Clone, Copy, Default)]
struct Ring {
    size: u16,
    /// The next free descriptor: old chains are completed by the time that this wraps.
    free: u16,
    avail: u16,
    seen: u16,
    event_idx: bool,
}

/// Addresses of queue `queue`: descriptor table, available ring, used ring, and a table for an indirect chain.
pub fn rings(queue: usize) -> [u64; 4] {
    let base = 0x1000 + queue as u64 * 0x4000;
    [base, base + 0x1000, base + 0x2000, base + 0x3000]
}

/// The registers of `device`, and their page.
fn registers(
    device: Box<dyn VirtioDevice>,
    ram: &GuestRam,
    line: &EventFd,
) -> (Mmio, Weak<MmapRegion>) {
    let region = Arc::new(MmapRegion::new(4096).unwrap());
    let pages = Arc::downgrade(&region);
    let interrupt = line.try_clone().unwrap();
    let transport = Transport::new(device, ram.clone(), (region, 0), interrupt).unwrap();
    (Mmio::new(transport), pages)
}

impl Driver {
    /// A driver for `device` after power-on.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_ram(device, memory::of_ranges(&[(0, RAM_SIZE), (HIGH_RAM, HIGH_RAM_SIZE)]))
    }

    /// A driver for `device` in a machine with other RAM.
    pub fn with_ram(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let (mmio, pages) = registers(device, &ram, &line);
        let mut driver = Self { mmio, ram, pages, main: 0, line, queues: Vec::new() };
        while driver.queue_max(driver.queues.len()) > 0 {
            driver.queues.push(Ring::default());
        }
        driver
    }

    /// Puts a new device in the place of the one that the driver has.
    pub fn exchange(&mut self, device: Box<dyn VirtioDevice>) {
        (self.mmio, self.pages) = registers(device, &self.ram, &self.line);
    }

    /// Has the device serve its queues on the driver's own thread.
    pub fn by_hand(mut self) -> Self {
        self.mmio.transport.by_hand = true;
        self
    }

    /// Reads a register.
    pub fn get(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.mmio.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn set(&mut self, register: u32, value: u32) {
        self.mmio.write(register.into(), &value.to_le_bytes());
    }

    /// The device's status.
    pub fn status(&mut self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    /// The number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Selects `queue` and returns its maximum size.
    pub fn queue_max(&mut self, queue: usize) -> u32 {
        self.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        self.get(VIRTIO_MMIO_QUEUE_NUM_MAX)
    }

    /// Resets the device; its registers have to show that.
    pub fn reset(&mut self) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        assert_eq!(self.interrupt_status(), 0);
        self.take_interrupt();
    }

    /// Initializes the device up to DRIVER_OK, with all features.
    pub fn init(&mut self) {
        let all = self.offered_features();
        self.init_with(all);
    }

    /// Initializes the device up to DRIVER_OK.
    pub fn init_with(&mut self, features: u64) {
        self.start_setup();
        assert!(self.accept_features(features));
        for queue in 0..self.queues.len() {
            self.set_up_queue(queue);
            self.queues[queue].event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        }
        self.driver_ok();
        assert_eq!(self.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }

    /// Initializes the device up to DRIVER.
    pub fn start_setup(&mut self) {
        self.reset();
        self.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    }

    /// The features that the device offers.
    pub fn offered_features(&mut self) -> u64 {
        [1, 0].into_iter().fold(0, |features, half| {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            features << 32 | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
        })
    }

    /// Whether the device accepts exactly `features`.
    pub fn accept_features(&mut self, features: u64) -> bool {
        for half in 0..2 {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        let status = self.status();
        self.set(VIRTIO_MMIO_STATUS, status | VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Clears the rings and makes the queue ready, with its maximum size.
    pub fn set_up_queue(&mut self, queue: usize) {
        self.describe_queue(queue);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 1);
    }

    /// Sets up the queue, without making it ready.
    pub fn describe_queue(&mut self, queue: usize) {
        let size = self.queue_max(queue);
        self.queues[queue] = Ring { size: size as u16, ..Ring::default() };
        let [desc, avail, used, _] = rings(queue);
        self.write(desc, &[0; 0x4000]);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size);
        self.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, desc);
        self.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail);
        self.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, used);
    }

    /// Writes an address to `register` and the one after it, which takes the high half.
    pub fn set_address(&mut self, register: u32, address: u64) {
        self.set(register, address as u32);
        self.set(register + 4, (address >> 32) as u32);
    }

    /// Sets DRIVER_OK.
    pub fn driver_ok(&mut self) {
        let status = self.status();
        self.set(VIRTIO_MMIO_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// The interrupt status.
    pub fn interrupt_status(&mut self) -> u32 {
        self.get(VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    /// Clears `bits` of the interrupt status.
    pub fn acknowledge(&mut self, bits: u32) {
        self.set(VIRTIO_MMIO_INTERRUPT_ACK, bits);
    }

    /// Whether the line was raised since the last call.
    pub fn take_interrupt(&self) -> bool {
        self.line.read().is_ok()
    }

    /// Writes RAM.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Reads RAM.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn read_u16(&self, address: u64) -> u16 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// Puts a descriptor into the table at `table`.
    pub fn set_desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let desc = Descriptor::new(addr, len, flags, next);
        self.ram.write_obj(desc, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let [_, avail, ..] = rings(queue);
        let Ring { size, avail: index, .. } = self.queues[queue];
        self.write(avail + 4 + 2 * u64::from(index % size), &head.to_le_bytes());
        self.set_avail_index(queue, index.wrapping_add(1));
    }

    /// Makes all requests before `index` available.
    pub fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.queues[queue].avail = index;
        let [_, avail, ..] = rings(queue);
        let address = GuestAddress(avail + 2);
        self.ram.store(index, address, Ordering::Release).unwrap();
    }

    /// Without EVENT_IDX: enables or disables interrupts.
    pub fn want_interrupts(&self, queue: usize, wanted: bool) {
        self.write(rings(queue)[1], &u16::from(!wanted).to_le_bytes());
    }

    /// With EVENT_IDX: enables an interrupt once the used index passes `index`.
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let [_, avail, ..] = rings(queue);
        let size = self.queues[queue].size;
        self.write(avail + 4 + 2 * u64::from(size), &index.to_le_bytes());
    }

    /// Makes a request of `buffers` available and returns its head.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.queues[queue];
        let count = buffers.len() as u16;
        let head = if ring.free + count <= ring.size { ring.free } else { 0 };
        ring.free = head + count;
        self.link(rings(queue)[0], head, buffers);
        self.offer(queue, head);
        head
    }

    /// Makes a request of `buffers` in an indirect table available and returns its head.
    pub fn add_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let [desc, _, _, table] = rings(queue);
        self.link(table, 0, buffers);
        self.set_desc(desc, 0, table, 16 * buffers.len() as u32, INDIRECT, 0);
        self.offer(queue, 0);
        0
    }

    fn link(&self, table: u64, first: u16, buffers: &[Buffer]) {
        for (index, (addr, len, writable)) in (first..).zip(buffers.iter().copied()) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.set_desc(table, index, addr, len, flags, index + 1);
        }
    }

    /// Calls `meanwhile` while the device's threads are stopped.
    pub fn paused(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        self.mmio.transport.pause();
        meanwhile(self);
        self.mmio.transport.resume().unwrap();
    }

    /// Kicks `queue`.
    pub fn kick(&mut self, queue: usize) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.mmio.transport.serve();
    }

    /// Whether the device wants a kick after the last request was made available.
    pub fn wants_kick(&self, queue: usize) -> bool {
        fence(Ordering::SeqCst); // between the available index and the device's flag (2.7.21)
        let Ring { size, avail, event_idx, .. } = self.queues[queue];
        let used = rings(queue)[2];
        let event = used + 4 + 8 * u64::from(size);
        if event_idx {
            self.read_u16(event) == avail.wrapping_sub(1)
        } else {
            self.read_u16(used) & 1 == 0
        }
    }

    /// Requests that `wait_used` has not returned yet.
    pub fn unanswered(&self, queue: usize) -> u16 {
        self.queues[queue].avail.wrapping_sub(self.queues[queue].seen)
    }

    /// The number of completed requests, modulo 2^16.
    pub fn used_index(&self, queue: usize) -> u16 {
        self.read_u16(rings(queue)[2] + 2)
    }

    /// Waits until `done`; fails if that takes too long.
    pub fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_micros(20));
            // By hand, a device whose turn ended early needs another turn.
            self.mmio.transport.serve();
        }
    }

    /// Waits for the next completed request; returns its head and the written bytes.
    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let mut used = None;
        self.wait_until("an answer", |driver| {
            used = driver.take_used(queue);
            used.is_some()
        });
        used.unwrap()
    }

    /// The next completed request, if there is one: its head and the written bytes.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let Ring { size, seen, .. } = self.queues[queue];
        let index: u16 =
            self.ram.load(GuestAddress(rings(queue)[2] + 2), Ordering::Acquire).unwrap();
        if index == seen {
            return None;
        }
        self.queues[queue].seen = seen.wrapping_add(1);
        let element = rings(queue)[2] + 4 + 8 * u64::from(seen % size);
        let [head, len]: [u32; 2] = self.ram.read_obj(GuestAddress(element)).unwrap();
        Some((head as u16, len))
    }

    /// Waits for DEVICE_NEEDS_RESET, which comes with a configuration interrupt.
    pub fn wait_needs_reset(&mut self) {
        self.wait_until("DEVICE_NEEDS_RESET", |driver| {
            driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
                && driver.interrupt_status() & CONFIG_CHANGE != 0
        });
        self.wait_until("the interrupt", |driver| driver.take_interrupt());
    }

    /// Sends `readable`; returns the bytes that the device wrote to `room` bytes, and their number in the used ring.
    pub fn request(&mut self, queue: usize, readable: &[u8], room: usize) -> (Vec<u8>, u32) {
        let answer = (DATA + readable.len() as u64).next_multiple_of(16);
        self.write(DATA, readable);
        self.write(answer, &vec![0xee; room]);
        let mut buffers = vec![(DATA, readable.len() as u32, false), (answer, room as u32, true)];
        buffers.retain(|(_, len, _)| *len > 0);
        let head = self.add(queue, &buffers);
        self.kick(queue);
        let (answered, written) = self.wait_used(queue);
        assert_eq!(answered, head);
        (self.read(answer, room), written)
    }
}

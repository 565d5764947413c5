//! A virtio device as its registers and rings are (virtio 1.2, 2.7 and 4.2.2), for drivers that do not behave.

use crate::machine::{read, write};

const WINDOWS: u64 = 0xd000_0000;
const WINDOW: u64 = 0x1000;
/// How many windows are looked into, and attacked.
pub const COUNT: u64 = 5;

pub const DEVICE_FEATURES: u64 = 0x10;
pub const DRIVER_FEATURES: u64 = 0x20;
pub const QUEUE_SEL: u64 = 0x30;
pub const QUEUE_NUM: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const NOTIFY: u64 = 0x50;
pub const STATUS: u64 = 0x70;
pub const DESC: u64 = 0x80;
pub const AVAIL: u64 = 0x90;
pub const USED: u64 = 0xa0;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Queues of a device, at most.
const QUEUES: u64 = 4;
/// Entries of a queue.
pub const SIZE: u16 = 64;
/// Rings of all devices, and data of their requests: RAM that is used for nothing else.
const RINGS: u64 = 0x100_0000;
pub const DATA: u64 = 0x180_0000;
pub const DATA_LEN: u64 = 0x80_0000;

/// A window of registers.
#[derive(Clone, Copy)]
pub struct Device {
    pub base: u64,
}

/// Addresses of a queue's parts.
#[derive(Clone, Copy)]
pub struct Rings {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

impl Device {
    pub fn at(index: u64) -> Self {
        Self { base: WINDOWS + index * WINDOW }
    }

    /// The first device with this device ID.
    pub fn find(id: u32) -> Option<Self> {
        (0..COUNT).map(Self::at).find(|device| device.get(8) == id)
    }

    pub fn get(self, register: u64) -> u32 {
        read(self.base + register)
    }

    pub fn set(self, register: u64, value: u32) {
        write(self.base + register, value);
    }

    pub fn set_address(self, register: u64, address: u64) {
        self.set(register, address as u32);
        self.set(register + 4, (address >> 32) as u32);
    }

    /// Where this guest puts the rings of a queue, if it puts them in RAM.
    pub fn rings(self, queue: u64) -> Rings {
        let desc = RINGS + (self.base - WINDOWS) / WINDOW * 0x10_0000 + queue % QUEUES * 0x1_0000;
        Rings { desc, avail: desc + 0x4000, used: desc + 0x8000 }
    }

    /// Where the data of its requests goes, a quarter of a MiB each: no device has another's.
    pub fn data(self, slot: u64) -> u64 {
        DATA + (self.base - WINDOWS) / WINDOW % 8 * (DATA_LEN / 8) + slot % 4 * 0x4_0000
    }

    pub fn reset(self) {
        self.set(STATUS, 0);
    }

    /// Everything up to FEATURES_OK, with all features, EVENT_IDX aside: every request is to make an interrupt.
    pub fn negotiate(self) {
        self.reset();
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        for half in [0, 1] {
            self.set(DEVICE_FEATURES + 4, half);
            self.set(DRIVER_FEATURES + 4, half);
            let offered = self.get(DEVICE_FEATURES);
            self.set(DRIVER_FEATURES, if half == 0 { offered & !(1 << 29) } else { offered });
        }
        self.set(STATUS, 11);
    }

    pub fn describe(self, queue: u64, size: u32, rings: Rings) {
        self.set(QUEUE_SEL, queue as u32);
        self.set(QUEUE_NUM, size);
        self.set_address(DESC, rings.desc);
        self.set_address(AVAIL, rings.avail);
        self.set_address(USED, rings.used);
        self.set(QUEUE_READY, 1);
    }

    /// Sets up all queues as they should be, with empty rings.
    pub fn init(self) {
        self.negotiate();
        for queue in 0..QUEUES {
            let rings = self.rings(queue);
            for ring in [rings.avail, rings.used] {
                (0..8).for_each(|at| write(ring + 8 * at, 0u64));
            }
            self.describe(queue, SIZE.into(), rings);
        }
        self.set(STATUS, 15);
    }

    pub fn kick(self, queue: u64) {
        self.set(NOTIFY, queue as u32);
    }

    pub fn set_descriptor(
        self,
        queue: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.rings(queue).desc + 16 * u64::from(index);
        write(at, addr);
        write(at + 8, len);
        write(at + 12, flags);
        write(at + 14, next);
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(self, queue: u64, head: u16) {
        let avail = self.rings(queue).avail;
        let index: u16 = read(avail + 2);
        write(avail + 4 + 2 * u64::from(index % SIZE), head);
        write(avail + 2, index.wrapping_add(1));
    }

    /// Makes a request available: of the disk to read `len` bytes from `sector`, of others to fill them.
    pub fn ask(self, queue: u64, slot: u16, sector: u64, len: u32) {
        let (head, data) = (slot % (SIZE / 4) * 4, self.data(slot.into()));
        let header = self.rings(queue).desc + 0x1000 + u64::from(head) * 32;
        write(header, 0u64);
        write(header + 8, sector);
        self.set_descriptor(queue, head, header, 16, NEXT, head + 1);
        self.set_descriptor(queue, head + 1, data, len, NEXT | WRITE, head + 2);
        self.set_descriptor(queue, head + 2, header + 16, 1, WRITE, 0);
        let is_disk = self.get(8) == 2;
        self.offer(queue, if is_disk { head } else { head + 1 });
    }
}

//! The guest's requests are granted within the owner's request; nothing else can be reached.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_READY,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::contract::{BLOCK, BLOCKS, HOTPLUG_START, with_hotplug_region};
use super::mem::Mem;
use super::mem_handle::MemHandle;
use super::rng::Rng;
use super::test_driver::{CONFIG_CHANGE, DATA, Driver, RAM_SIZE};
use crate::memory::hotplug::{Hotplug, Slots};
use crate::memory::{self, GuestRam, RamRegion};

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// The memory that a guest's CPUs see.
#[derive(Clone, Default)]
struct Cpus {
    seen: Arc<Mutex<Vec<usize>>>,
    /// KVM has no more slots.
    full: Arc<AtomicBool>,
    /// Each block takes longer than a turn.
    slow: Arc<AtomicBool>,
}

impl Slots for Cpus {
    fn set(&self, _: &RamRegion, index: usize, is_there: bool) -> Result<()> {
        if !is_there {
            let mut seen = self.seen.lock().unwrap();
            let at = seen.iter().position(|other| *other == index).expect("it is there");
            seen.remove(at);
            return Ok(());
        }
        ensure!(!self.full.load(Ordering::SeqCst) || index < 5, "no more");
        if self.slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(11));
        }
        let mut seen = self.seen.lock().unwrap();
        assert!(!seen.contains(&index), "{index} is there already");
        seen.push(index);
        Ok(())
    }
}

struct Guest {
    driver: Driver,
    handle: MemHandle,
    cpus: Cpus,
    ram: GuestRam,
}

fn guest(requested: u64) -> Guest {
    let ram = with_hotplug_region(&memory::of_ranges(&[(0, RAM_SIZE)]));
    let cpus = Cpus::default();
    let device = Mem::new(Hotplug::new(&ram, cpus.clone()).unwrap());
    let handle = device.handle();
    handle.request(requested * BLOCK).unwrap();
    let mut driver = Driver::with_ram(Box::new(device), ram.clone());
    driver.init();
    Guest { driver, handle, cpus, ram }
}

impl Guest {
    /// Sends a request; returns the type of the response and the state in it.
    fn asks(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = vec![0xaa; 24]; // unused bytes
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        let (answer, written) = self.driver.request(0, &request, 10);
        assert_eq!(written, 10);
        let half = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
        (half(0), half(8))
    }

    #[track_caller]
    fn gets(&mut self, kind: u16, block: u64, count: u16, answer: u16) -> &mut Self {
        assert_eq!(
            self.asks(kind, HOTPLUG_START + block * BLOCK, count).0,
            answer,
            "{kind} {block} {count}"
        );
        self
    }

    /// Checks that exactly these blocks are plugged, for CPUs, devices and driver.
    #[track_caller]
    fn has(&mut self, blocks: &[usize]) {
        let mut seen = self.cpus.seen.lock().unwrap().clone();
        seen.sort_unstable();
        assert_eq!(seen, blocks);
        assert_eq!(self.handle.status().plugged, blocks.len() as u64 * BLOCK);
        assert_eq!(self.field(5), blocks.len() as u64 * BLOCK, "plugged_size");
        for index in 0..BLOCKS {
            let at = GuestAddress(HOTPLUG_START + index * BLOCK);
            let is_there = blocks.contains(&(index as usize));
            assert_eq!(self.ram.get_slice(at, BLOCK as usize).is_ok(), is_there, "{index}");
            assert_eq!(self.ram.read_obj::<u64>(at).is_ok(), is_there, "{index}");
        }
    }

    /// A word of 64 bits of the configuration space.
    fn field(&mut self, index: u32) -> u64 {
        let at = VIRTIO_MMIO_CONFIG + index * 8;
        u64::from(self.driver.get(at)) | u64::from(self.driver.get(at + 4)) << 32
    }
}

#[test]
fn blocks_come_and_go_as_the_guest_asks() {
    let mut guest = guest(BLOCKS);
    let fields: Vec<u64> = (0..7).map(|index| guest.field(index)).collect();
    let all = BLOCKS * BLOCK;
    assert_eq!(fields, [BLOCK, 0, HOTPLUG_START, all, all, 0, all]);
    guest.gets(PLUG, 2, 3, ACK).has(&[2, 3, 4]);
    guest.gets(PLUG, 69, 1, ACK).gets(PLUG, 63, 2, ACK).has(&[2, 3, 4, 63, 64, 69]);
    guest.gets(UNPLUG, 3, 1, ACK).has(&[2, 4, 63, 64, 69]);
    for (block, count, state) in
        [(2, 1, 0), (63, 2, 0), (3, 1, 1), (5, 58, 1), (2, 2, 2), (0, 70, 2)]
    {
        assert_eq!(
            guest.asks(STATE, HOTPLUG_START + block * BLOCK, count),
            (ACK, state),
            "{block} {count}"
        );
    }
    guest.gets(UNPLUG_ALL, 999, 0, ACK).has(&[]);
    guest.gets(UNPLUG_ALL, 0, 0, ACK).gets(PLUG, 0, 70, ACK).has(&(0..70).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_is_an_error_and_changes_nothing() {
    let mut guest = guest(BLOCKS);
    guest.gets(PLUG, 10, 2, ACK);
    for kind in [PLUG, UNPLUG, STATE] {
        guest.gets(kind, 12, 0, ERROR).gets(kind, 69, 2, ERROR).gets(kind, 70, 1, ERROR);
        guest.gets(kind, 12, u16::MAX, ERROR);
        for address in [
            HOTPLUG_START + 1,
            HOTPLUG_START - BLOCK,
            HOTPLUG_START + BLOCK / 2,
            0,
            u64::MAX,
            u64::MAX - BLOCK + 1,
        ] {
            assert_eq!(guest.asks(kind, address, 1).0, ERROR, "{kind} {address:#x}");
        }
    }
    guest.gets(PLUG, 9, 2, ERROR).gets(PLUG, 10, 1, ERROR).gets(PLUG, 11, 2, ERROR);
    guest.gets(UNPLUG, 9, 2, ERROR).gets(UNPLUG, 12, 1, ERROR).gets(UNPLUG, 10, 3, ERROR);
    guest.gets(4, 12, 1, ERROR).gets(u16::MAX, 12, 1, ERROR);
    let (answer, written) = guest.driver.request(0, &[0; 23], 10);
    assert_eq!((answer[0], written), (ERROR as u8, 10), "a request that is too short");
    assert_eq!(guest.driver.request(0, &[0; 24], 1), (vec![ERROR as u8], 1), "little room");
    guest.has(&[10, 11]);
}

#[test]
fn no_more_is_plugged_than_the_owner_asked_for() {
    let mut guest = guest(3);
    guest.gets(PLUG, 0, 4, NACK).gets(PLUG, 0, 2, ACK).gets(PLUG, 4, 2, NACK);
    guest.gets(PLUG, 4, 1, ACK).gets(PLUG, 5, 1, NACK).has(&[0, 1, 4]);
    let generation = guest.driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    guest.driver.acknowledge(u32::MAX);
    guest.handle.request(BLOCK).unwrap();
    assert_eq!(guest.driver.interrupt_status(), CONFIG_CHANGE);
    assert_ne!(guest.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!((guest.field(6), guest.handle.status().requested), (BLOCK, BLOCK));
    guest.gets(PLUG, 5, 1, NACK).gets(UNPLUG, 0, 2, ACK).has(&[4]);
    for bytes in [BLOCK + 1, (BLOCKS + 1) * BLOCK, u64::MAX] {
        guest.handle.request(bytes).unwrap_err();
    }
    assert_eq!(guest.handle.status().requested, BLOCK);
}

#[test]
fn a_reset_of_the_device_leaves_memory_as_it_is() {
    let mut guest = guest(BLOCKS);
    guest.gets(PLUG, 1, 2, ACK);
    guest.ram.write_obj(7u64, GuestAddress(HOTPLUG_START + BLOCK)).unwrap();
    guest.driver.init();
    guest.has(&[1, 2]);
    assert_eq!(guest.ram.read_obj::<u64>(GuestAddress(HOTPLUG_START + BLOCK)).unwrap(), 7);
    guest.driver.reset();
    guest.handle.request(0).unwrap();
    assert!(!guest.driver.take_interrupt(), "nobody is there");
    // A reset of the machine unplugs all.
    memory::discard(&guest.ram, false).unwrap();
    assert_eq!(guest.handle.status().plugged, 0);
}

#[test]
fn what_was_in_a_block_is_gone_when_it_comes_again() {
    let mut guest = guest(BLOCKS);
    guest.gets(PLUG, 0, 3, ACK);
    // A transfer that began before the block was unplugged still has its slice.
    let ram = guest.ram.clone();
    let slice = ram.get_slice(GuestAddress(HOTPLUG_START + BLOCK), BLOCK as usize).unwrap();
    slice.write_obj(7u64, 0).unwrap();
    for block in [0, 2] {
        ram.write_obj(9u64, GuestAddress(HOTPLUG_START + block * BLOCK)).unwrap();
    }
    guest.gets(UNPLUG, 1, 1, ACK);
    assert_eq!(slice.read_obj::<u64>(0).unwrap(), 0, "given back");
    slice.write_obj(8u64, 64).unwrap();
    guest.gets(PLUG, 1, 1, ACK);
    assert_eq!(slice.read_obj::<u64>(64).unwrap(), 0);
    for block in [0, 2] {
        assert_eq!(ram.read_obj::<u64>(GuestAddress(HOTPLUG_START + block * BLOCK)).unwrap(), 9);
    }
}

#[test]
fn a_host_that_cannot_is_busy_and_nothing_is_plugged_by_halves() {
    let mut guest = guest(BLOCKS);
    guest.gets(PLUG, 1, 1, ACK);
    guest.cpus.full.store(true, Ordering::SeqCst);
    guest.gets(PLUG, 2, 4, BUSY).has(&[1]);
    guest.gets(PLUG, 2, 3, ACK).has(&[1, 2, 3, 4]);
}

#[test]
fn a_long_request_is_carried_out_in_turns() {
    let mut guest = guest(BLOCKS);
    guest.cpus.slow.store(true, Ordering::SeqCst);
    guest.driver = guest.driver.by_hand();
    guest.driver.init();
    let plug = |guest: &mut Guest, block: u64, count: u8| {
        let mut request = [0; 24];
        request[8..16].copy_from_slice(&(HOTPLUG_START + block * BLOCK).to_le_bytes());
        request[16] = count;
        guest.driver.write(DATA, &request);
        guest.driver.add(0, &[(DATA, 24, false), (DATA + 64, 10, true)]);
        guest.driver.kick(0);
    };
    plug(&mut guest, 8, 4);
    guest.has(&[8]);
    assert_eq!(guest.driver.used_index(0), 0, "there is more to do");
    // The driver's later writes to the request have no effect.
    guest.driver.write(DATA, &[0xff; 24]);
    guest.driver.paused(|_| {});
    assert_eq!(guest.driver.wait_used(0), (0, 10));
    guest.has(&[8, 9, 10, 11]);
    // A reset ends the request; blocks that are plugged by then stay.
    plug(&mut guest, 20, 4);
    guest.driver.init();
    guest.driver.kick(0);
    guest.has(&[8, 9, 10, 11, 20]);
    guest.gets(UNPLUG_ALL, 0, 0, ACK).has(&[]);
}

#[test]
fn no_device_reaches_a_block_that_is_not_plugged() {
    let mut owner = guest(BLOCKS);
    owner.gets(PLUG, 1, 2, ACK);
    let mut driver = Driver::with_ram(Box::new(Rng::default()), owner.ram.clone());
    let mut ask = |address: u64, len: u32| {
        driver.init();
        driver.add(0, &[(address, len, true)]);
        driver.kick(0);
        let seen = AtomicUsize::new(0);
        driver.wait_until("an answer, or none", |driver| {
            seen.store(driver.used_index(0).into(), Ordering::SeqCst);
            seen.load(Ordering::SeqCst) > 0 || driver.status() & 64 != 0
        });
        seen.load(Ordering::SeqCst) > 0
    };
    let block = |index: u64| HOTPLUG_START + index * BLOCK;
    assert!(ask(block(1), 64));
    assert!(ask(block(2) - 32, 64), "both are plugged");
    for (address, len) in [
        (block(0), 64),
        (block(1) - 1, 2),
        (block(3) - 32, 64),
        (block(3), 1),
        (block(1), 3 * BLOCK as u32),
        (block(69), BLOCK as u32),
    ] {
        assert!(!ask(address, len), "{address:#x} {len}");
    }
    // Rings there are invalid, too.
    assert!(owner.ram.check_range(GuestAddress(block(1)), 16));
    assert!(!owner.ram.check_range(GuestAddress(block(5)), 16));
}

#[test]
fn a_ring_that_is_unplugged_in_part_ends_in_a_reset_and_not_in_a_loop() {
    let owner = guest(BLOCKS);
    let hotplug = Hotplug::new(&owner.ram, Cpus::default()).unwrap();
    for index in [0, 1] {
        hotplug.plug(index).unwrap();
    }
    let mut driver = Driver::with_ram(Box::new(Rng::default()), owner.ram.clone());
    driver.start_setup();
    let all = driver.offered_features();
    assert!(driver.accept_features(all));
    driver.describe_queue(0);
    // The available index is in the first block, the ring in the second.
    let available = HOTPLUG_START + BLOCK - 4;
    driver.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, available);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.driver_ok();
    hotplug.unplug(1).unwrap();
    owner.ram.write_obj(1u16, GuestAddress(available + 2)).unwrap();
    driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.wait_until("a device that needs a reset", |driver| driver.status() & 64 != 0);
}

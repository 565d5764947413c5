//! Writes that KVM collects in a ring instead of leaving the kernel for each.
//!
//! They have to be executed before anything that the guest does after them: at every exit, and periodically for a guest
//! that does not exit. KVM collects only while there are many, so that no thread has to poll while the guest is silent.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

use crate::sync::lock;

const PAGE: usize = 4096;
const HEADER: usize = size_of::<kvm_coalesced_mmio_ring>();
const ENTRY: usize = size_of::<kvm_coalesced_mmio>();
/// KVM_COALESCED_MMIO_MAX (include/uapi/linux/kvm.h).
const ENTRIES: u32 = ((PAGE - HEADER) / ENTRY) as u32;
/// Size of the ring, in bytes.
pub const RING_BYTES: usize = PAGE;
/// Offset of the index of the first entry that is not taken yet.
const FIRST: usize = 0;
/// Offset of the index of the entry that the kernel fills in next.
const NEXT: usize = 4;

/// A collected write.
pub struct Write {
    /// Port or guest physical address.
    pub address: u64,
    /// Whether it is a port.
    pub is_port: bool,
    data: [u8; 8],
    len: usize,
}

impl Write {
    /// The bytes written, at most 8.
    pub fn data(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

/// The ring of a VM, and the address whose writes are collected.
pub struct CoalescedWrites {
    vm: Arc<VmFd>,
    address: IoEventAddress,
    /// Whether KVM collects at present.
    collecting: AtomicBool,
    page: MmapRegion,
    /// Held from taking writes out until they are executed, to keep their order.
    taking: Mutex<()>,
}

impl CoalescedWrites {
    /// For writes of one byte to `address`. Maps the ring, which is the same on every vCPU of the VM.
    pub fn new(vm: Arc<VmFd>, address: IoEventAddress, cpu: &VcpuFd) -> Result<Self> {
        // SAFETY: the descriptor is open for as long as `cpu`.
        let fd = unsafe { BorrowedFd::borrow_raw(cpu.as_raw_fd()) };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as u64;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let page =
            unsafe { rustix::mm::mmap(ptr::null_mut(), PAGE, prot, MapFlags::SHARED, fd, offset) }
                .context("cannot map KVM's ring of coalesced writes")?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the mapping is this ring's, has this size, and stays until `drop`.
        let page =
            unsafe { MmapRegion::build_raw(page.cast(), PAGE, protection, libc::MAP_SHARED) }?;
        let collecting = AtomicBool::new(false);
        Ok(Self { vm, address, collecting, page, taking: Mutex::new(()) })
    }

    /// Whether KVM collects, so that a thread has to poll.
    pub fn is_collecting(&self) -> bool {
        self.collecting.load(Ordering::Relaxed)
    }

    /// Has KVM collect writes, or exit for each again. Writes in the ring stay there.
    pub fn collect(&self, on: bool) {
        let done = match on {
            true => self.vm.register_coalesced_mmio(self.address, 1),
            false => self.vm.unregister_coalesced_mmio(self.address, 1),
        };
        match done {
            Ok(()) => self.collecting.store(on, Ordering::Relaxed),
            Err(error) => log::debug!("coalesced writes: {error}"),
        }
    }

    /// Takes out all writes and calls `execute` with each, in order.
    pub fn drain(&self, execute: impl FnMut(&Write)) {
        if !self.is_empty() {
            let taking = lock(&self.taking);
            self.take_out(&taking, execute);
        }
    }

    /// [`Self::drain`] for a thread that may not wait for another: `None` if one is draining. Otherwise, whether there
    /// were writes.
    pub fn try_drain(&self, execute: impl FnMut(&Write)) -> Option<bool> {
        let taking = self.taking.try_lock().ok()?;
        let any = !self.is_empty();
        self.take_out(&taking, execute);
        Some(any)
    }

    fn is_empty(&self) -> bool {
        let ring = self.page.as_volatile_slice();
        index(&ring, FIRST) == index(&ring, NEXT)
    }

    fn take_out(&self, _taking: &MutexGuard<()>, mut execute: impl FnMut(&Write)) {
        let ring = self.page.as_volatile_slice();
        // Entries that the kernel adds meanwhile are left for the next time, so that this ends.
        let (mut first, next) = (index(&ring, FIRST), index(&ring, NEXT));
        while first != next && first < ENTRIES {
            if let Some(write) = entry(&ring, first) {
                execute(&write);
            }
            first = (first + 1) % ENTRIES;
            // Cannot fail: the offset is within the page, and aligned.
            let _ = ring.store(first, FIRST, Ordering::Release);
        }
    }
}

impl Drop for CoalescedWrites {
    fn drop(&mut self) {
        // SAFETY: the mapping is this ring's and has no references any more. It would keep the VM alive.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}

/// One of the ring's two indices. The kernel fills in an entry before it moves its index.
fn index(ring: &VolatileSlice, offset: usize) -> u32 {
    ring.load(offset, Ordering::Acquire).unwrap_or(0)
}

/// A `struct kvm_coalesced_mmio`: address, length, whether it is a port, the bytes.
fn entry(ring: &VolatileSlice, index: u32) -> Option<Write> {
    let at = HEADER + index as usize * ENTRY;
    let len: u32 = ring.read_obj(at + 8).ok()?;
    let is_port: u32 = ring.read_obj(at + 12).ok()?;
    let data: [u8; 8] = ring.read_obj(at + 16).ok()?;
    let address = ring.read_obj(at).ok()?;
    Some(Write { address, is_port: is_port != 0, data, len: data.len().min(len as usize) })
}

//! KVM's memory slots: the host memory that a guest's CPUs see, and its guest addresses.

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::hotplug::Slots;
use super::{GuestRam, RamRegion};
use crate::layout;

/// Makes `ram` the guest's memory: a KVM slot for each region without blocks.
pub fn map_into_guest(vm: &VmFd, ram: &GuestRam) -> Result<()> {
    for (slot, region) in ram.iter().filter(|region| region.blocks().is_none()).enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(slot)?,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.host() as u64,
        };
        // SAFETY: the range is a mapping of this process that lives as long as the process.
        unsafe { vm.set_user_memory_region(slot) }.with_context(|| {
            format!("KVM cannot map {} MiB of guest RAM: ask for less", slot.memory_size >> 20)
        })?;
    }
    Ok(())
}

/// Maps a page for the serial port, which the guest can only read.
pub fn serial_page(vm: &VmFd) -> Result<MmapRegion> {
    read_only_pages(vm, layout::SERIAL_SLOT, layout::SERIAL_PAGE, 1)
}

/// Maps a page for each of the first `count` virtio devices, which the guest can only read.
pub fn virtio_pages(vm: &VmFd, count: usize) -> Result<MmapRegion> {
    read_only_pages(vm, layout::VIRTIO_SLOT, layout::VIRTIO_MMIO, count)
}

/// Maps pages at `address` that only this process writes: the guest's reads do not exit, its writes do. CPUs must not
/// run any more when the pages are dropped.
fn read_only_pages(vm: &VmFd, slot: u32, address: u64, count: usize) -> Result<MmapRegion> {
    let pages = MmapRegion::new(count * 4096).context("no memory for a page")?;
    let slot = kvm_userspace_memory_region {
        slot,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: address,
        memory_size: pages.size() as u64,
        userspace_addr: pages.as_ptr() as u64,
    };
    // SAFETY: the pages are this process's; their owner keeps them for as long as CPUs run.
    unsafe { vm.set_user_memory_region(slot) }.context("KVM cannot map read-only pages")?;
    Ok(pages)
}

impl Slots for Arc<VmFd> {
    fn set(&self, region: &RamRegion, index: usize, is_there: bool) -> Result<()> {
        let blocks = region.blocks().context("no RAM that comes in blocks")?;
        let bytes = blocks.bytes(index);
        let slice = region.any_slice(bytes.clone())?;
        let slot = kvm_userspace_memory_region {
            slot: layout::FIRST_BLOCK_SLOT + u32::try_from(index)?,
            flags: 0,
            guest_phys_addr: region.start_addr().0 + bytes.start,
            // A size of zero deletes the slot (Documentation/virt/kvm/api.rst, 4.35).
            memory_size: if is_there { blocks.size() } else { 0 },
            userspace_addr: slice.ptr_guard_mut().as_ptr() as u64,
        };
        let what = if is_there { "map" } else { "unmap" };
        // SAFETY: the slice is guest RAM, a mapping of this process that lives as long as the process.
        unsafe { self.set_user_memory_region(slot) }
            .with_context(|| format!("KVM cannot {what} a block of guest RAM"))
    }
}

//! KVM's memory slots: what of our memory a guest's CPUs see, and where.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::GuestRam;

/// Makes `ram` the guest's memory, one KVM slot for each region.
pub fn map_into_guest(vm: &VmFd, ram: &GuestRam) -> Result<()> {
    for (slot, region) in ram.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(slot)?,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of ours that lives as long as the process.
        unsafe { vm.set_user_memory_region(slot) }.with_context(|| {
            format!("KVM cannot map {} MiB of guest RAM: ask for less", slot.memory_size >> 20)
        })?;
    }
    Ok(())
}

/// Shows the guest a page that only we write, at `address`: its reads are no exits, its writes are. The guest
/// must not run any more when the page is dropped.
pub fn read_only_page(vm: &VmFd, ram: &GuestRam, address: u64) -> Result<MmapRegion> {
    let page = MmapRegion::new(4096).context("no memory for a page")?;
    let slot = kvm_userspace_memory_region {
        slot: u32::try_from(ram.num_regions())?,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: address,
        memory_size: 4096,
        userspace_addr: page.as_ptr() as u64,
    };
    // SAFETY: the page is ours; its owner keeps it for as long as CPUs run.
    unsafe { vm.set_user_memory_region(slot) }.context("KVM cannot map a read-only page")?;
    Ok(page)
}

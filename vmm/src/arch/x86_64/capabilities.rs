//! What KVM has to have, and how large a machine it can make here.

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::{Cap, Kvm};

use super::{apic, layout};
use crate::config::{MachineConfig, Mem, Size};

/// Capabilities that tinyvmm cannot do without, with their names in the KVM API.
pub const REQUIRED: [(Cap, &str); 4] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Bits of a physical address that every x86-64 CPU has at least.
const MIN_ADDRESS_BITS: u32 = 36;

/// Refuses a KVM that machines cannot be built on.
pub fn check_kvm(kvm: &Kvm) -> Result<()> {
    let version = kvm.get_api_version();
    ensure!(version == 12, "/dev/kvm has API version {version}, not 12: update the host's kernel");
    for (cap, name) in REQUIRED {
        ensure!(kvm.check_extension(cap), "/dev/kvm lacks {name}: update the host's kernel");
    }
    Ok(())
}

/// Refuses, with the number that can be had, a machine that KVM here cannot make.
pub fn check(kvm: &Kvm, config: &MachineConfig) -> Result<()> {
    let cpus = config.cpus;
    let most = max_cpus(kvm);
    ensure!(cpus.count() <= most, "--cpus {cpus}: this host allows at most {most}");
    let highest = apic::id(cpus, cpus.count() - 1);
    // 255 is the broadcast id of the 8-bit ids that interrupts are routed with.
    let ids = u32::try_from(kvm.get_max_vcpu_id()).unwrap_or(0).min(255);
    if highest >= ids {
        bail!(
            "--cpus {cpus}: needs APIC ids up to {highest} and there are {ids}; \
             use powers of two for cores and threads, or fewer CPUs"
        );
    }
    // Every host has as much as this; asking KVM takes half a millisecond.
    if config.mem.boot > addressable(MIN_ADDRESS_BITS) {
        let most = addressable(address_bits(kvm)?);
        ensure!(config.mem.boot <= most, "--mem {}: this host allows at most {most}", config.mem);
    }
    config.mem.room().map_or(Ok(()), |room| check_room(kvm, config.mem, room.end))
}

/// The most virtual CPUs that a machine can have here.
pub fn max_cpus(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(255)
}

/// Memory that can be plugged up to address `end` needs addresses, and slots.
fn check_room(kvm: &Kvm, mem: Mem, end: u64) -> Result<()> {
    if end > 1 << MIN_ADDRESS_BITS {
        let bits = address_bits(kvm)?;
        ensure!(
            end <= 1 << bits,
            "--mem {mem}: its last address is {end:#x} and this host has {bits} bits: choose a smaller max"
        );
    }
    let (slots, blocks) = (kvm.get_nr_memslots() as u64, mem.more.bytes() / mem.block());
    ensure!(
        blocks + u64::from(layout::FIRST_BLOCK_SLOT) <= slots,
        "--mem {mem}: this host's KVM has {slots} memory slots, one for {} MiB: choose a smaller max or update its kernel",
        mem.block() >> 20
    );
    Ok(())
}

/// How many bits a physical address of a guest has here.
fn address_bits(kvm: &Kvm) -> Result<u32> {
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.context("cannot read what CPUs KVM supports")?;
    let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    let bits = leaf.map_or(0, |leaf| leaf.eax & 0xff);
    Ok(bits.clamp(MIN_ADDRESS_BITS, 52))
}

/// Guest memory that physical addresses of so many `bits` can be given to, and one KVM slot can hold.
fn addressable(bits: u32) -> Size {
    // KVM_MEM_MAX_NR_PAGES (include/linux/kvm_host.h) is 2^31 - 1 pages; half of that is plenty.
    const SLOT: u64 = 4 << 40;
    Size::new(((1u64 << bits) - (layout::GAP_END - layout::GAP_START)).min(SLOT))
}

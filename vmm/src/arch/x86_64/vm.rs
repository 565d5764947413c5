//! The VM and its vCPUs as KVM makes them, and the tables that describe them to a guest.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::acpi::{self, Hardware};
use super::cpuid::CpuidTemplate;
use super::kernel::Kernel;
pub use super::regs::set_boot_state;
use super::{apic, cmdline, layout, mptable, regs, saved, smbios};
use crate::config::MachineConfig;
use crate::memory::GuestRam;
use crate::random;

/// Makes a VM, without memory and interrupt chips.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    // A ring of io_uring that was closed leaves work to this thread, which interrupts the call as a signal does.
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            vm => break vm.context("KVM cannot make a virtual machine")?,
        }
    };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(layout::KVM_TSS as usize).context("KVM_SET_TSS_ADDR")?;
    Ok(vm)
}

/// Makes the interrupt chips of `vm`, which has all of its memory slots: with Linux 6.18 one that is set later waits some
/// milliseconds until what the chips have replaced is freed (kvm_io_bus_register_dev, virt/kvm/kvm_main.c).
pub fn create_chips(vm: &VmFd) -> Result<()> {
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")
}

/// Whether `kernel` needs a PIT: without kvmclock Linux measures its TSC against it, and without ACPI it is its first
/// timer (before 5.3).
pub fn needs_pit(kernel: &Kernel, config: &MachineConfig) -> bool {
    !kernel.acpi || cmdline::without_kvmclock(config)
}

/// Makes a PIT.
pub fn create_pit(vm: &VmFd) -> Result<()> {
    // With port 0x61, through which Linux gates channel 2 to calibrate.
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(config).context("KVM_CREATE_PIT2")
}

/// Makes the vCPUs of `vm`, each with its CPUID and MSRs.
pub fn create_vcpus(vm: &VmFd, kvm: &Kvm, config: &MachineConfig) -> Result<Vec<VcpuFd>> {
    let cpuid = CpuidTemplate::new(kvm, config.cpus, &config.cpu_template)?;
    let create = |index| {
        let fd = vm
            .create_vcpu(apic::id(config.cpus, index).into())
            .with_context(|| format!("KVM cannot make CPU {index}"))?;
        fd.set_cpuid2(&cpuid.for_cpu(index)?).context("KVM_SET_CPUID2")?;
        if cpuid.xcr0() != 0 {
            regs::set_xcr0(&fd, cpuid.xcr0())?;
        }
        regs::set_msrs(&fd)?;
        saved::change_msrs(&fd, &config.cpu_template)?;
        Ok(fd)
    };
    (0..config.cpus.count()).map(create).collect()
}

/// Writes the ACPI, MP and SMBIOS tables of a machine with so many virtio devices.
pub fn write_tables(config: &MachineConfig, ram: &GuestRam, virtio_devices: usize) -> Result<()> {
    let rtc = cmdline::without_kvmclock(config);
    let hardware = Hardware { cpus: config.cpus, virtio_devices, rtc, uart: config.uart };
    acpi::write(ram, hardware)?;
    mptable::write(ram, config.cpus)?;
    write_identity(config, ram)
}

/// Gives the machine, or this copy of one, an identity: a UUID, random unless `config` says one, and the generation by
/// which a guest finds out that it is a copy.
pub fn write_identity(config: &MachineConfig, ram: &GuestRam) -> Result<()> {
    let random = uuid::Builder::from_random_bytes(random::bytes()?).into_uuid();
    let uuid = config.uuid.unwrap_or(random);
    smbios::write(ram, config.cpus, config.mem.bytes(), uuid)?;
    let generation: [u8; 16] = random::bytes()?;
    Ok(ram.write_slice(&generation, GuestAddress(layout::GENERATION.start))?)
}

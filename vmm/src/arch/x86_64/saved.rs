//! What KVM keeps of a guest: the state of vCPUs, interrupt chips and clocks, read and written back.

use std::arch::x86_64::_rdtsc;

use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::{_IOC_WRITE, ioctl_expr, ioctl_with_ref};

use super::cpuid;
use super::hex;
use crate::config::{CpuTemplate, MsrChange};

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Two frequencies that differ by less are the same one (as in KVM's tsc_tolerance_ppm).
const TOLERANCE_PPM: u64 = 250;

const KVM_SET_DEVICE_ATTR: libc::c_ulong = request::<kvm_device_attr>(0xe1);
const KVM_GET_DEVICE_ATTR: libc::c_ulong = request::<kvm_device_attr>(0xe2);

/// `_IOW(KVMIO, nr, T)`.
const fn request<T>(nr: u32) -> libc::c_ulong {
    ioctl_expr(_IOC_WRITE, KVMIO, nr, size_of::<T>() as u32)
}

/// The state of a vCPU, whose last instruction is complete.
#[derive(Serialize, Deserialize)]
pub struct CpuState {
    #[serde(with = "hex::list")]
    cpuid: Vec<kvm_cpuid_entry2>,
    #[serde(with = "hex::list")]
    msrs: Vec<kvm_msr_entry>,
    #[serde(with = "hex")]
    mp_state: kvm_mp_state,
    #[serde(with = "hex")]
    regs: kvm_regs,
    #[serde(with = "hex")]
    sregs: kvm_sregs,
    #[serde(with = "hex")]
    xsave: kvm_xsave,
    #[serde(with = "hex")]
    xcrs: kvm_xcrs,
    #[serde(with = "hex")]
    debug: kvm_debugregs,
    #[serde(with = "hex")]
    lapic: kvm_lapic_state,
    #[serde(with = "hex")]
    events: kvm_vcpu_events,
    /// 0 where KVM does not say.
    tsc_khz: u32,
    /// What is added to the host's counter, where KVM says it (Linux 5.16).
    tsc_offset: Option<u64>,
}

/// The state of what all vCPUs share.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    #[serde(with = "hex")]
    clock: kvm_clock_data,
    /// The host's counter at that time.
    tsc: u64,
    /// Both PICs and the IOAPIC.
    #[serde(with = "hex::list")]
    chips: Vec<kvm_irqchip>,
    #[serde(with = "hex::list")]
    pit: Vec<kvm_pit_state2>,
}

/// How a guest's clocks go on when it is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// From where they were, as if no time had passed.
    Continue,
    /// With the host's time: the guest sees that it was away.
    FollowHost,
}

/// Reads the state of `vm`, and of its `cpus` after their last instruction is complete.
pub fn save(
    kvm: &Kvm,
    vm: &VmFd,
    has_pit: bool,
    cpus: &[&VcpuFd],
) -> Result<(VmState, Vec<CpuState>)> {
    ensure!(
        vm.check_extension_raw(Cap::Xsave2 as u64) <= size_of::<kvm_xsave>() as i32,
        "this processor's registers do not fit KVM_GET_XSAVE"
    );
    let msrs = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    let cpus = cpus.iter().map(|fd| CpuState::save(fd, msrs.as_slice()));
    let cpus = cpus.collect::<Result<_>>()?;
    Ok((VmState::save(vm, has_pit)?, cpus))
}

impl VmState {
    fn save(vm: &VmFd, has_pit: bool) -> Result<Self> {
        let chip = |id| {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP").map(|()| chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let chips = chips.into_iter().map(chip).collect::<Result<_>>()?;
        let pit = has_pit.then(|| vm.get_pit2().context("KVM_GET_PIT2")).transpose()?;
        let clock = vm.get_clock().context("KVM_GET_CLOCK")?;
        Ok(Self { clock, tsc: host_tsc(), chips, pit: pit.into_iter().collect() })
    }

    /// Whether the machine has a PIT.
    pub fn has_pit(&self) -> bool {
        !self.pit.is_empty()
    }

    /// What the guest's counters have to be moved by, for a guest whose counter has `khz`.
    fn tsc_shift(&self, clocks: Clocks, khz: u32) -> u64 {
        let away = match clocks {
            Clocks::Continue => 0,
            Clocks::FollowHost => now().saturating_sub(self.clock.realtime),
        };
        let ticks = u128::from(away) * u128::from(khz) / 1_000_000;
        self.tsc.wrapping_sub(host_tsc()).wrapping_add(ticks as u64)
    }

    /// Sets the state of a new `vm` and its `cpus`, in an order that is KVM's: what is set later must not be changed by
    /// what was set before.
    pub fn restore(
        &self,
        states: &[CpuState],
        vm: &VmFd,
        cpus: &[VcpuFd],
        clocks: Clocks,
    ) -> Result<()> {
        ensure!(states.len() == cpus.len(), "the snapshot is of {} CPUs", states.len());
        let knows_time = self.clock.flags & KVM_CLOCK_REALTIME != 0;
        ensure!(
            clocks == Clocks::Continue || knows_time,
            "the snapshot does not say when it was made (before Linux 5.16): its clocks can only continue"
        );
        let khz = states.first().map_or(0, |state| state.tsc_khz);
        let shift = self.tsc_shift(clocks, khz);
        for (index, (state, fd)) in states.iter().zip(cpus).enumerate() {
            state.restore(fd, shift).with_context(|| format!("CPU {index}"))?;
        }
        let flags = if clocks == Clocks::FollowHost { KVM_CLOCK_REALTIME } else { 0 };
        let clock = kvm_clock_data { flags, ..self.clock };
        vm.set_clock(&clock).context("KVM_SET_CLOCK")?;
        for chip in &self.chips {
            vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
        }
        for pit in &self.pit {
            vm.set_pit2(pit).context("KVM_SET_PIT2")?;
        }
        Ok(())
    }
}

impl CpuState {
    fn save(fd: &VcpuFd, msrs: &[u32]) -> Result<Self> {
        // First: it takes INIT and SIPI that are pending.
        let mp_state = fd.get_mp_state().context("KVM_GET_MP_STATE")?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_CPUID2")?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            mp_state,
            regs: fd.get_regs().context("KVM_GET_REGS")?,
            sregs: fd.get_sregs().context("KVM_GET_SREGS")?,
            xsave: fd.get_xsave().context("KVM_GET_XSAVE")?,
            xcrs: fd.get_xcrs().context("KVM_GET_XCRS")?,
            debug: fd.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
            lapic: fd.get_lapic().context("KVM_GET_LAPIC")?,
            msrs: get_msrs(fd, msrs)?,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            tsc_offset: get_tsc_offset(fd),
            // Last: it has what the calls before may have queued.
            events: fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
        })
    }

    /// Sets the state of `fd`, which has the CPUID of a new machine on this host.
    fn restore(&self, fd: &VcpuFd, shift: u64) -> Result<()> {
        let here = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_CPUID2")?;
        cpuid::check(&self.cpuid, here.as_slice())?;
        let cpuid = CpuId::from_entries(&self.cpuid).context("too many leaves of CPUID")?;
        fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        self.set_frequency(fd)?;
        fd.set_mp_state(self.mp_state).context("KVM_SET_MP_STATE")?;
        fd.set_regs(&self.regs).context("KVM_SET_REGS")?;
        fd.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        // SAFETY: KVM reads 4096 bytes, as long as nobody has enabled larger registers for this process (arch_prctl(2)).
        unsafe { fd.set_xsave(&self.xsave) }.context("KVM_SET_XSAVE")?;
        fd.set_xcrs(&self.xcrs).context("KVM_SET_XCRS")?;
        fd.set_debug_regs(&self.debug).context("KVM_SET_DEBUGREGS")?;
        // After SREGS, which has the APIC's address.
        fd.set_lapic(&self.lapic).context("KVM_SET_LAPIC")?;
        self.restore_msrs(fd, shift)?;
        fd.set_vcpu_events(&self.events).context("KVM_SET_VCPU_EVENTS")
    }

    fn set_frequency(&self, fd: &VcpuFd) -> Result<()> {
        let here = u64::from(fd.get_tsc_khz().unwrap_or(0));
        let there = u64::from(self.tsc_khz);
        if there == 0 || here.abs_diff(there) * 1_000_000 <= here * TOLERANCE_PPM {
            return Ok(());
        }
        fd.set_tsc_khz(self.tsc_khz).with_context(|| {
            format!("the snapshot's time stamp counter has {there} kHz, this host's {here}")
        })
    }

    fn restore_msrs(&self, fd: &VcpuFd, shift: u64) -> Result<()> {
        // KVM takes a counter that is written within a second of another one's start for an attempt to synchronize the
        // two (kvm_synchronize_tsc, arch/x86/kvm/x86.c): a young guest's would be another's. An offset is what it is.
        let has_offset = match self.tsc_offset {
            Some(offset) => set_tsc_offset(fd, offset.wrapping_add(shift)),
            None => false,
        };
        let value = |index| self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.data);
        let counter = value(MSR_TSC).unwrap_or(0);
        // The deadline comes last: setting it arms the timer, by the counter.
        let (last, mut first): (Vec<_>, Vec<_>) =
            self.msrs.iter().copied().partition(|msr| msr.index == MSR_TSC_DEADLINE);
        first.retain(|msr| !(has_offset && msr.index == MSR_TSC));
        // It reads as zero once the timer has fired, which the guest may not have seen yet.
        let fired = |msr: kvm_msr_entry| kvm_msr_entry {
            data: if msr.data == 0 { counter } else { msr.data },
            ..msr
        };
        first.extend(last.into_iter().map(fired));
        set_msrs(fd, &first)
    }
}

/// The MSRs that can be read, of those with these numbers.
fn get_msrs(fd: &VcpuFd, wanted: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut found = Vec::new();
    let mut rest = wanted;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let entry = |index: &u32| kvm_msr_entry { index: *index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&some.iter().map(entry).collect::<Vec<_>>())?;
        let read = fd.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
        found.extend(&msrs.as_slice()[..read]);
        // KVM stops at the first one that this vCPU has not.
        rest = &rest[if read < some.len() { read + 1 } else { read }..];
    }
    Ok(found)
}

/// Makes the changes that `template` has of the MSRs of a new vCPU.
pub(super) fn change_msrs(fd: &VcpuFd, template: &CpuTemplate) -> Result<()> {
    let mut wanted: Vec<_> = template.msrs.iter().map(|msr| msr.addr.0).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut msrs = get_msrs(fd, &wanted)?;
    for MsrChange { addr, bitmap } in &template.msrs {
        let found = msrs.iter_mut().find(|msr| msr.index == addr.0);
        let msr = found.with_context(|| format!("msr_modifiers: KVM has no MSR {addr} here"))?;
        msr.data = bitmap.applied_to(msr.data);
    }
    set_msrs(fd, &msrs).context("msr_modifiers")
}

/// Sets MSRs in this order. One that cannot be set may have the value already.
fn set_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<()> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let set = fd.set_msrs(&Msrs::from_entries(some)?).context("KVM_SET_MSRS")?;
        rest = &rest[set..];
        // KVM stops at the first one that it does not take.
        if let (true, Some((refused, others))) = (set < some.len(), rest.split_first()) {
            let kvm_msr_entry { index, data, .. } = *refused;
            let now = get_msrs(fd, &[index])?;
            let has_it = now.first().is_some_and(|now| now.data == data);
            ensure!(has_it, "MSR {index:#x} cannot be {data:#x} on this host");
            rest = others;
        }
    }
    Ok(())
}

/// Reads or writes what is added to the host's counter: the eight bytes of `offset`.
fn tsc_offset(fd: &VcpuFd, request: libc::c_ulong, offset: &mut u64) -> bool {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(offset).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: KVM reads or writes the eight bytes of `offset`, which is borrowed until the call returns.
    unsafe { ioctl_with_ref(fd, request, &attribute) == 0 }
}

fn get_tsc_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0;
    tsc_offset(fd, KVM_GET_DEVICE_ATTR, &mut offset).then_some(offset)
}

fn set_tsc_offset(fd: &VcpuFd, mut offset: u64) -> bool {
    tsc_offset(fd, KVM_SET_DEVICE_ATTR, &mut offset)
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it.
    unsafe { _rdtsc() }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_nanos() as u64
}

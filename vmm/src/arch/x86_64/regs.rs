//! The state in which a CPU starts.

use anyhow::{Context, Result};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::kernel::Entry;
use crate::layout;
use crate::memory::GuestRam;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PTE_PRESENT_WRITE: u64 = 0b11;
const PDE_LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Fast strings; no branch trace store, no PEBS.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// A flat 4 GiB segment; `kind` is its type field (Intel SDM volume 3, 3.4.5.1).
fn flat(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// The descriptor that a segment register was loaded from.
fn descriptor(segment: &kvm_segment) -> u64 {
    let access = u64::from(segment.type_) | 1 << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

/// Puts the boot CPU where `entry` says, with the registers of its protocol, and writes the
/// tables that these registers point to. The other CPUs wait for INIT and SIPI.
pub fn set_boot_state(vcpu: &VcpuFd, ram: &GuestRam, entry: Entry) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let regs = match entry {
        Entry::Linux64(rip) => {
            set_long_mode(&mut sregs, ram)?;
            kvm_regs { rip, rsi: layout::ZERO_PAGE, ..Default::default() }
        }
        Entry::Pvh(rip) => {
            set_segments(&mut sregs, ram, false)?;
            sregs.cr0 = CR0_PE | CR0_ET;
            kvm_regs { rip, rbx: layout::PVH_START_INFO, ..Default::default() }
        }
    };
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&kvm_regs { rflags: RFLAGS_RESERVED, ..regs }).context("KVM_SET_REGS")?;
    Ok(())
}

/// Flat segments with the selectors of boot.rst: __BOOT_CS 0x10, __BOOT_DS 0x18.
fn set_segments(sregs: &mut kvm_sregs, ram: &GuestRam, long: bool) -> Result<()> {
    let (code, data) = (flat(0x10, 0xb, long), flat(0x18, 0x3, false));
    let tss = kvm_segment { limit: 0x67, selector: 0x20, type_: 0xb, s: 0, g: 0, db: 0, ..data };
    let gdt = [0, 0, descriptor(&code), descriptor(&data), 0x0000_8b00_0000_0067];
    ram.write_obj(gdt, GuestAddress(layout::GDT))?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&gdt) - 1)?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss;
    Ok(())
}

/// 64-bit mode with the first 4 GiB mapped one to one in 2 MiB pages.
fn set_long_mode(sregs: &mut kvm_sregs, ram: &GuestRam) -> Result<()> {
    set_segments(sregs, ram, true)?;
    let table = |index: u64| layout::PAGE_TABLES + index * 0x1000;
    let write = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at));
    write(table(1) | PTE_PRESENT_WRITE, table(0))?;
    for gib in 0..4 {
        write(table(2 + gib) | PTE_PRESENT_WRITE, table(1) + gib * 8)?;
    }
    for page in 0..4 * 512 {
        write(page << 21 | PDE_LARGE | PTE_PRESENT_WRITE, table(2) + page * 8)?;
    }
    sregs.cr3 = table(0);
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
    Ok(())
}

/// MSRs as firmware leaves them: fast strings, and memory write-back unless a page says otherwise.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted =
        [entry(MSR_MISC_ENABLE, MISC_ENABLE), entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)];
    let set = vcpu.set_msrs(&Msrs::from_entries(&wanted)?).context("KVM_SET_MSRS")?;
    if set < wanted.len() {
        // KVM stops at the first MSR that it does not know; kernels start without these.
        log::debug!("KVM set {set} of {} MSRs, not {:#x}", wanted.len(), wanted[set].index);
    }
    Ok(())
}

/// Enables every XSAVE component that `supported` (CPUID 0xd, EAX) has, so that the sizes in
/// CPUID leaf 0xd are right from the start; the guest's kernel checks them against its own sums.
pub fn set_xcr0(vcpu: &VcpuFd, supported: u32) -> Result<()> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = supported.into();
    vcpu.set_xcrs(&xcrs).context("KVM_SET_XCRS")
}

//! How often a guest exits, by kind: KVM's own counters, which include what the kernel handles itself.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use serde::Serialize;
use vmm_sys_util::ioctl::ioctl;

/// `_IO(KVMIO, 0xce)` (include/uapi/linux/kvm.h).
const KVM_GET_STATS_FD: libc::c_ulong = (KVMIO as libc::c_ulong) << 8 | 0xce;

/// Exits of all CPUs since they were made. `total` has more kinds than are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExitCounts {
    /// All exits.
    pub total: u64,
    /// Port I/O.
    pub io: u64,
    /// Memory-mapped registers.
    pub mmio: u64,
    /// HLT: the CPU had nothing to do.
    pub halt: u64,
    /// Interrupts of the host.
    pub interrupt: u64,
    /// Faults for want of a host page behind guest memory.
    pub page_fault: u64,
}

impl ExitCounts {
    /// All fields, in the order of their declaration.
    pub fn each(&self) -> [u64; 6] {
        [self.total, self.io, self.mmio, self.halt, self.interrupt, self.page_fault]
    }

    /// The field for a counter of KVM's (`kvm_vcpu_stats_desc`, arch/x86/kvm/x86.c).
    fn field(&mut self, name: &[u8]) -> Option<&mut u64> {
        Some(match name {
            b"exits" => &mut self.total,
            b"io_exits" => &mut self.io,
            b"mmio_exits" => &mut self.mmio,
            b"halt_exits" => &mut self.halt,
            b"irq_exits" => &mut self.interrupt,
            b"pf_taken" => &mut self.page_fault,
            _ => return None,
        })
    }
}

/// The counters of a machine's CPUs. Reading them does not disturb the CPUs.
#[derive(Default)]
pub struct KvmCounters(Vec<CpuCounters>);

struct CpuCounters {
    file: File,
    /// The counters' names and offsets in the file.
    places: Vec<(Vec<u8>, u64)>,
}

impl KvmCounters {
    /// Adds a CPU. Fails where the host's kernel is older than 5.14.
    pub fn add(&mut self, cpu: &VcpuFd) -> Result<()> {
        // SAFETY: this ioctl takes no argument and returns a new descriptor.
        let fd = unsafe { ioctl(cpu, KVM_GET_STATS_FD) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = places(&file)?;
        self.0.push(CpuCounters { file, places });
        Ok(())
    }

    /// The sum over all CPUs; `None` where KVM has no such counters.
    pub fn read(&self) -> Option<ExitCounts> {
        let mut counts = ExitCounts::default();
        for cpu in &self.0 {
            for (name, place) in &cpu.places {
                let mut number = [0; 8];
                cpu.file.read_exact_at(&mut number, *place).ok()?;
                *counts.field(name)? += u64::from_ne_bytes(number);
            }
        }
        (!self.0.is_empty()).then_some(counts)
    }
}

/// The names and offsets of the counters in `file` that [`ExitCounts`] has. The file has a `kvm_stats_header`, a
/// `kvm_stats_desc` with a name for each counter, and the values (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
fn places(file: &File) -> Result<Vec<(Vec<u8>, u64)>> {
    const DESCRIPTOR: u64 = 16;
    let field = |at: u64| -> Result<u64> {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_ne_bytes(bytes).into())
    };
    let (name_size, count, descriptors, numbers) = (field(4)?, field(8)?, field(16)?, field(20)?);
    let mut places = Vec::new();
    for index in 0..count {
        let at = descriptors + index * (DESCRIPTOR + name_size);
        let mut name = vec![0; name_size as usize];
        file.read_exact_at(&mut name, at + DESCRIPTOR)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        if ExitCounts::default().field(&name).is_some() {
            places.push((name, numbers + field(at + 8)?));
        }
    }
    Ok(places)
}

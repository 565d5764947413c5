//! What this host's KVM is and can do.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_ioctls::{Cap, Kvm};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::errno;

use crate::config::{MachineConfig, Mem, Size};
use crate::layout;

/// How KVM runs guest code here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmKind {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// Guest kernel code is interpreted (kvm_pvm): hand-made guests run, stock kernels do not.
    Interpreting,
    /// None of the known modules.
    Unknown,
}

impl KvmKind {
    /// What the kernel's loaded modules say.
    pub fn detect() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") {
            Self::Interpreting
        } else if loaded("kvm_intel") {
            Self::Vmx
        } else if loaded("kvm_amd") {
            Self::Svm
        } else {
            Self::Unknown
        }
    }

    /// Whether unmodified kernels can boot.
    pub fn runs_stock_kernels(self) -> bool {
        self != Self::Interpreting
    }
}

/// Capabilities that tinyvmm cannot do without, with their names in the KVM API.
pub const REQUIRED: [(Cap, &str); 4] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Bits of a physical address that every x86-64 CPU has at least.
const MIN_ADDRESS_BITS: u32 = 36;

/// Opens `/dev/kvm` and checks that it is a KVM that machines can be built on.
pub fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(explain_open)?;
    let version = kvm.get_api_version();
    ensure!(version == 12, "/dev/kvm has API version {version}, not 12: update the host's kernel");
    for (cap, name) in REQUIRED {
        ensure!(kvm.check_extension(cap), "/dev/kvm lacks {name}: update the host's kernel");
    }
    Ok(kvm)
}

fn explain_open(error: errno::Error) -> anyhow::Error {
    match error.errno() {
        libc::ENOENT => {
            anyhow!(
                "no /dev/kvm: enable virtualization in the firmware and load kvm_intel or kvm_amd"
            )
        }
        libc::EACCES => anyhow!(
            "no permission for /dev/kvm: if its group is kvm, join it (sudo usermod -aG kvm $USER, \
             then log in again); `tinyvmm doctor` knows more"
        ),
        _ => anyhow!("cannot open /dev/kvm ({error}): see `tinyvmm doctor`"),
    }
}

/// Refuses, with the number that can be had, a machine that KVM here cannot make.
pub fn check(kvm: &Kvm, config: &MachineConfig) -> Result<()> {
    let cpus = config.cpus;
    let most = max_cpus(kvm);
    ensure!(cpus.count() <= most, "--cpus {cpus}: this host allows at most {most}");
    let highest = cpus.apic_id(cpus.count() - 1);
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

/// Random bytes, at most 256 of them, which the host gives at once (getrandom(2)).
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("the host has no random bytes")?;
    Ok(bytes)
}

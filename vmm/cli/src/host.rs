//! The kind of this host's KVM, and what it can do.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use kvm_ioctls::Kvm;
use log::Level;
use tinyvmm::arch::capabilities;
use tinyvmm::arch::kernel::KernelFile;
use tinyvmm::config::MachineConfig;
use tinyvmm::event::Halt;
use tinyvmm::machine;
use tinyvmm::memory::GuestRam;
use vmm_sys_util::errno;

use crate::inbox::End;

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
    /// Detects the kind by the kernel's loaded modules.
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

/// Memory that new programs can have without swapping, in KiB (proc(5)).
pub fn available_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Why stock kernels do not boot on this host, in one line, if there is a known reason.
pub fn why_boots_fail_here() -> Option<String> {
    why_boots_fail(KvmKind::detect())
}

/// Why stock kernels do not boot on a host with a KVM of this `kind`.
pub fn why_boots_fail(kind: KvmKind) -> Option<String> {
    let reason = "this host's KVM (kvm_pvm) interprets guest kernels, and stock ones fail on it: \
                  use scripts/kvm-box";
    (!kind.runs_stock_kernels()).then(|| reason.into())
}

/// A reason that keeps stock kernels from booting on this host.
pub struct Misfit {
    reason: String,
    /// The kernel is Linux, not a hand-made guest that may well run.
    is_linux: bool,
}

impl Misfit {
    /// Finds the reason, if there is one for `kernel`, and logs it.
    pub fn find(kernel: &KernelFile) -> Option<Self> {
        let reason = why_boots_fail_here()?;
        let is_linux = kernel.is_linux();
        log::log!(if is_linux { Level::Warn } else { Level::Info }, "{reason}");
        Some(Self { reason, is_linux })
    }

    /// The reason, if it explains this `end`.
    pub fn explain(self, end: &End) -> Option<String> {
        let explains = match end {
            End::Guest(Halt::Internal(_) | Halt::TripleFault) => true,
            End::Timeout => self.is_linux,
            _ => false,
        };
        explains.then_some(self.reason)
    }
}

/// Opens `/dev/kvm` and checks that it has what machines need.
pub fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(explain_open)?;
    capabilities::check_kvm(&kvm)?;
    Ok(kvm)
}

/// Reserves guest RAM; the error says how much can be had.
pub fn allocate_ram(config: &MachineConfig) -> Result<GuestRam> {
    machine::allocate_ram(config).with_context(|| {
        if !config.hugepages {
            return "--mem: ask for less".to_owned();
        }
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free = std::fs::read_to_string(pool).unwrap_or_else(|_| "0".into());
        format!(
            "--hugepages needs {} free 2 MiB pages and there are {}: write more to \
             /proc/sys/vm/nr_hugepages or leave --hugepages out",
            config.mem.bytes().div_ceil(2 << 20),
            free.trim()
        )
    })
}

fn explain_open(error: errno::Error) -> anyhow::Error {
    match error.errno() {
        libc::ENOENT => {
            anyhow!(
                "no /dev/kvm: turn on Intel VT-x or AMD SVM in the firmware's setup (for a guest, nested \
                 virtualization under it), load kvm_intel or kvm_amd; `tinyvmm doctor` knows which"
            )
        }
        libc::EACCES => anyhow!(
            "no permission for /dev/kvm: if its group is kvm, join it (sudo usermod -aG kvm $USER, \
             then log in again); `tinyvmm doctor` knows more"
        ),
        _ => anyhow!("cannot open /dev/kvm ({error}): see `tinyvmm doctor`"),
    }
}

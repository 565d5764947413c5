//! Stock Debian kernels, from the first instruction to every kind of end.
//!
//! They need a /dev/kvm that runs such kernels: `scripts/check` runs them in the KVM box, all in one. A guest prints
//! its findings as lines `name=value`, so that one boot checks many things.

mod api;
mod boot;
mod boot_test;
mod command;
mod compare;
mod disk;
mod ends;
mod exec;
mod identity;
mod image;
mod load;
mod memory;
mod net;
mod oci;
mod share;
mod small;
mod snapshot;
mod soak;
mod template;
mod vsock;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fixture::{Outcome, Vmm};
use crate::images::image;

/// Added to each limit in a box, which interprets its guests and shares the host's CPUs.
const IN_A_BOX: Duration = Duration::from_secs(150);
/// Printed by the images' init, once a boot.
const INIT: &str = "tinyvmm-init: up after";

/// A stock kernel, with an initramfs that fits.
#[derive(Clone, Copy)]
struct Kernel {
    flavour: &'static str,
    file: &'static str,
}

/// A bzImage with an LZ4 payload.
const CLOUD_BZIMAGE: Kernel = Kernel { flavour: "cloud", file: "vmlinuz" };
const CLOUD_ELF: Kernel = Kernel { flavour: "cloud", file: "vmlinux" };
/// A bzImage with an XZ payload, which takes the guest seconds to unpack.
const AMD64_BZIMAGE: Kernel = Kernel { flavour: "amd64", file: "vmlinuz" };
/// Made for tinyvmm: all drivers are built in.
const SMALL_BZIMAGE: Kernel = Kernel { flavour: "small", file: "vmlinuz" };
const SMALL_ELF: Kernel = Kernel { flavour: "small", file: "vmlinux" };

impl Kernel {
    fn path(self) -> PathBuf {
        image(&format!("kernel-{}", self.flavour)).join(self.file)
    }

    fn initrd(self) -> PathBuf {
        image(&format!("initramfs-{}", self.flavour))
    }

    /// A machine without an initrd, with `cmdline` added to the command line.
    fn bare(self, cmdline: &str) -> Vmm {
        let kernel = ["--kernel".into(), self.path()];
        Vmm::new().patiently(IN_A_BOX).args(kernel).args(["--cmdline", cmdline])
    }

    /// A machine with `cmdline` added to the command line.
    fn with_cmdline(self, cmdline: &str) -> Vmm {
        self.bare(cmdline).args(["--initrd".into(), self.initrd()])
    }

    /// A quiet machine that runs `script` and powers off.
    fn runs(self, script: &str) -> Vmm {
        self.with_cmdline(&format!("quiet {}", then_run(script)))
    }
}

/// The end of a kernel command line that passes `script` to init.
fn then_run(script: &str) -> String {
    assert!(!script.contains(['"', '\n']), "the kernel would take it apart: {script}");
    format!("-- \"{script}\"")
}

/// The flag for the disk `path`, with options such as `,readonly`.
fn disk(path: &Path, options: &str) -> [OsString; 2] {
    let mut value = path.as_os_str().to_owned();
    value.push(options);
    ["--disk".into(), value]
}

/// The output of a guest.
struct Console(String);

impl Console {
    fn of(outcome: &Outcome) -> Self {
        Self(String::from_utf8_lossy(&outcome.stdout).replace('\r', ""))
    }

    /// The number of lines with `text`.
    fn count(&self, text: &str) -> usize {
        self.0.lines().filter(|line| line.contains(text)).count()
    }

    /// The rest of the line that starts with `name=`.
    #[track_caller]
    fn value(&self, name: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name}= in the guest's output:\n{}", self.0))
    }

    #[track_caller]
    fn number(&self, name: &str) -> u64 {
        let value = self.value(name);
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number:\n{}", self.0))
    }

    /// Checks that the guest has printed `name=value` with exactly this value.
    #[track_caller]
    fn has(&self, name: &str, expected: &str) -> &Self {
        let found = self.value(name);
        assert_eq!(found, expected, "{name} in the guest's output:\n{}", self.0);
        self
    }
}

/// Runs a machine that is to power off, and returns the guest's output.
#[track_caller]
fn console_of(vmm: Vmm) -> Console {
    let outcome = vmm.run();
    let console = Console::of(&outcome);
    assert_eq!(outcome.stderr, "", "standard error; the guest's output:\n{}", console.0);
    outcome.exits(0);
    console
}

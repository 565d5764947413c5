//! x86-64: the only place that knows its registers, boot protocols and firmware tables.

mod acpi;
pub mod apic;
pub mod boot;
pub mod capabilities;
pub mod cmdline;
mod cpuid;
mod hex;
pub mod kernel;
pub mod layout;
mod mptable;
mod regs;
pub mod saved;
mod smbios;
pub mod vm;

/// AUDIT_ARCH_X86_64 (include/uapi/linux/audit.h): how a system call's filter knows that calls are numbered as this
/// program numbers them.
pub const AUDIT_ARCH: u32 = 0xc000_003e;

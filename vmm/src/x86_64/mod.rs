//! The only place that knows x86 registers, boot protocols and firmware tables.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod kernel;
pub mod regs;
pub mod smbios;

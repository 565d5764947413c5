//! Devices that are not virtio: those on a PC's I/O ports.

pub mod boot_timer;
pub mod console;
pub mod guest_report;
mod held;
pub mod output;
pub mod pci;
pub mod power;
pub mod rtc;
pub mod serial;

//! Devices that are not virtio: what a PC has on its I/O ports.

pub mod boot_timer;
pub mod console;
pub mod guest_report;
pub mod output;
pub mod power;
pub mod rtc;
pub mod serial;

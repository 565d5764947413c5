//! tinyvmm: a tiny Type-2 hypervisor on KVM.
//!
//! ARCHITECTURE.md has the map. In short: [`cli`] makes a [`config::MachineConfig`], [`run`]
//! builds a [`machine::Machine`] from it, starts it and waits for its end.

pub mod api;
pub mod boot_test;
pub mod bus;
pub mod cli;
pub mod coalesced;
pub mod command;
pub mod config;
pub mod ctl;
pub mod devices;
pub mod disk_image;
pub mod doctor;
pub mod event;
pub mod exits;
pub mod files;
pub mod firecracker;
pub mod host;
pub mod instructions;
pub mod jail;
pub mod layout;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod overlay;
pub mod process;
pub mod report;
pub mod run;
pub mod sync;
pub mod timeline;
pub mod trace;
pub mod vcpu;
pub mod virtio;
pub mod worker;
pub mod x86_64;

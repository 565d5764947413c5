//! A virtual machine on KVM, as a library.
pub mod arch;
pub mod bus;
pub mod coalesced;
pub mod config;
pub mod devices;
pub mod disk_image;
pub mod event;
pub mod flock;
pub mod machine;
pub mod memory;
pub mod overlay;
pub mod pieces;
pub mod random;
pub mod sync;
pub mod timeline;
pub mod vcpu;
pub mod virtio;
pub mod worker;

pub use arch::layout;

//! A virtual machine on KVM, as a library: the machine of the `tinyvmm` command.
//!
//! A machine is an x86-64 guest with vCPUs, RAM, ACPI and SMBIOS tables, a serial console and virtio devices: disks,
//! random numbers, a balloon, pluggable memory, vsock, and those that other processes serve. It boots Linux, from a
//! bzImage or an ELF file.
//!
//! # Usage
//!
//! 1. A [`MachineConfig`](config::MachineConfig) describes the guest, and nothing else does. Its values are checked by
//!    [`validate`](config::MachineConfig::validate), and against the host by
//!    [`capabilities::check`](arch::capabilities::check).
//! 2. The program opens the files and hands them over: kernel and initrd in [`Files`](machine::Files), disks as
//!    [`DiskImage`](disk_image::DiskImage)s, the descriptors of a [`Console`](devices::console::Console).
//! 3. [`Machine::build`](machine::Machine::build) makes a stopped machine of them, [`start`](machine::Machine::start) a
//!    [`RunningMachine`](machine::RunningMachine), whose [`stop`](machine::RunningMachine::stop) returns the stopped
//!    machine. What needs a stopped machine does not compile on a running one; [`LiveMachine`](machine::LiveMachine) is
//!    either.
//! 4. The machine reports its end as an [`Event`](event::Event), from any of its threads. The owner stops the machine
//!    then. To start it again after a reset, the owner discards its RAM and builds it of the same files.
//!
//! While the machine runs, its owner reaches the devices through [`Handles`](machine::Handles), e.g. to press the power
//! button or to resize the balloon.
//!
//! ```no_run
//! use std::fs::File;
//!
//! use kvm_ioctls::Kvm;
//! use tinyvmm::arch::kernel::KernelFile;
//! use tinyvmm::config::MachineConfig;
//! use tinyvmm::devices::console::Console;
//! use tinyvmm::event::{Event, Events};
//! use tinyvmm::machine::{self, Files, Machine, Owner, Start};
//! use tinyvmm::memory::loadable::Loadable;
//!
//! # fn main() -> anyhow::Result<()> {
//! let config = MachineConfig::default(); // 1 vCPU, 256 MiB
//! let kernel = Loadable::new(File::open("bzImage")?, "bzImage".into())?;
//! let start = Start::Boot { kernel: KernelFile::new(kernel, None), initrd: None };
//! let files = Files::new(start);
//! let ram = machine::allocate_ram(&config)?;
//! let mut console = Console::new(false)?;
//! console.connect(File::create("console.log")?, None);
//!
//! let events = Events::new()?;
//! let owner = Owner::new(events.sender());
//! let machine = Machine::build(&Kvm::new()?, &config, &files, &ram, console, &owner)?;
//! let running = machine.start()?;
//! while !matches!(events.next(None), Some(Event::Halt(_))) {}
//! running.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/boot.rs` is a whole program: it checks the host, boots a kernel with its console on standard output and
//! prints how the guest ended.
//!
//! # What the library never does
//!
//! It opens no path, prints nothing, reads no flags or environment, knows no terminal and no HTTP, and leaves the
//! process's rights to the program: [`worker::on_thread_start`] has each thread call a function of the program's, which
//! may install a seccomp filter for the thread's [`ThreadKind`](worker::ThreadKind). It logs through the `log` crate;
//! what a guest does wrong is logged once.
//!
//! A guest is never trusted: nothing that it does makes the library panic, hang, or use memory without a bound.
pub mod arch;
pub mod backend;
pub mod bus;
pub mod coalesced;
pub mod config;
pub mod devices;
pub mod disk_image;
pub mod engine;
pub mod event;
pub mod flock;
pub mod geometry;
pub mod machine;
pub mod memory;
pub mod overlay;
pub mod pieces;
pub mod random;
pub mod rate;
pub mod sync;
pub mod timeline;
pub mod vcpu;
pub mod virtio;
pub mod wire;
pub mod worker;

pub use arch::layout;

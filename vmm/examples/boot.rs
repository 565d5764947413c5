//! Boots a Linux kernel, bzImage or ELF, with its console on standard output:
//! `cargo run --example boot -- bzImage [COMMAND LINE]`

use std::env;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use tinyvmm::arch::capabilities;
use tinyvmm::arch::kernel::KernelFile;
use tinyvmm::config::MachineConfig;
use tinyvmm::devices::console::Console;
use tinyvmm::event::{Event, Events};
use tinyvmm::machine::{self, Files, Machine, Owner, Start};
use tinyvmm::memory::loadable::Loadable;

fn main() -> Result<()> {
    let path = PathBuf::from(env::args_os().nth(1).context("usage: boot KERNEL [COMMAND LINE]")?);
    let cmdline = env::args().nth(2);
    let config = MachineConfig { cmdline, ..Default::default() };

    let kvm = Kvm::new().context("/dev/kvm")?;
    capabilities::check_kvm(&kvm)?;
    capabilities::check(&kvm, &config)?;

    let kernel = Loadable::new(File::open(&path)?, path)?;
    let start = Start::Boot { kernel: KernelFile::new(kernel, None), initrd: None };
    let files = Files::new(start);
    let ram = machine::allocate_ram(&config)?;
    let mut console = Console::new(false)?;
    console.connect(File::from(std::io::stdout().as_fd().try_clone_to_owned()?), None);

    let events = Events::new()?;
    let owner = Owner::new(events.sender());
    let running = Machine::build(&kvm, &config, &files, &ram, console, &owner)?.start()?;
    let end = loop {
        if let Some(Event::Halt(halt)) = events.next(None) {
            break halt;
        }
    };
    running.stop()?;
    println!("{end}");
    Ok(())
}

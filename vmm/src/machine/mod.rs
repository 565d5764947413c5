//! A machine, stopped or running.

mod devices;
mod handles;
mod live;
mod saved;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use self::devices::{Devices, PcDevices, coalesce_output};
pub use self::handles::Handles;
pub use self::live::LiveMachine;
pub use self::saved::{Renewal, SavedMachine};
use crate::arch::boot::{self, Initrd};
use crate::arch::kernel::KernelFile;
use crate::arch::vm;
use crate::backend::Backend;
use crate::config::MachineConfig;
use crate::devices::console::{Console, ConsoleWork};
use crate::devices::output::Output;
use crate::disk_image::DiskImage;
use crate::event::{EventSender, Halt};
use crate::memory::{self, Backing, GuestRam};
use crate::sync::lock;
use crate::timeline::{Mark, Timeline};
use crate::vcpu::{Buses, Vcpu};
use crate::virtio::block::Block;
use crate::virtio::mmio::Mmio;
use crate::virtio::net::Net;
use crate::virtio::vsock::host::Host;
use crate::wire::Wire;
use crate::worker::{self, Worker};

/// What a machine starts with.
pub enum Start {
    /// A kernel that boots.
    Boot {
        /// The kernel.
        kernel: KernelFile,
        /// The initial RAM disk, if there is one.
        initrd: Option<Initrd>,
    },
    /// The state of another machine, whose memory the RAM has already ([`memory::saved::restore`]).
    Saved(Box<SavedMachine>, Renewal),
}

impl Start {
    fn saved(&self) -> Option<&SavedMachine> {
        match self {
            Self::Boot { .. } => None,
            Self::Saved(saved, _) => Some(saved),
        }
    }
}

/// What a machine is made of on the host, all of it open. A machine that resets is built again of the same.
pub struct Files {
    /// What it starts with.
    pub start: Start,
    /// The disks, locked, in the order of the configuration.
    pub disks: Vec<DiskImage>,
    /// What the network cards are connected to, in the order of the configuration.
    pub wires: Vec<Wire>,
    /// The processes that serve devices: those of shares, then others, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// What the vsock device has of the host; `None` is nobody.
    pub vsock: Option<Host>,
}

impl Files {
    /// Those of a machine that has no devices of the host's.
    pub fn new(start: Start) -> Self {
        let (disks, wires, backends, vsock) = Default::default();
        Self { start, disks, wires, backends, vsock }
    }
}

/// Where a machine reports to.
#[derive(Clone)]
pub struct Owner {
    /// Gets what the machine's owner has to act on.
    pub events: EventSender,
    /// Gets what a boot passes on its way.
    pub timeline: Timeline,
}

impl Owner {
    /// One who gets `events` and measures nothing.
    pub fn new(events: EventSender) -> Self {
        Self { events, timeline: Timeline::default() }
    }
}

/// Reserves the memory that `config` describes: what the guest starts with, and room for what can be plugged.
pub fn allocate_ram(config: &MachineConfig) -> Result<GuestRam> {
    let shared = config.is_served_by_others();
    let ram =
        memory::allocate(config.mem.bytes(), Backing { hugepages: config.hugepages, shared })?;
    match config.mem.room() {
        Some(range) => memory::with_hotplug_region(&ram, range, config.mem.block(), shared),
        None => Ok(ram),
    }
}

/// A machine that does not run.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    console: ConsoleWork,
    board: Board,
}

/// A machine whose vCPUs run.
pub struct RunningMachine {
    vcpus: Vec<Worker<Vcpu>>,
    console: Worker<ConsoleWork>,
    board: Board,
}

/// What is the same in a machine that runs and one that does not.
struct Board {
    buses: Buses,
    /// Disks first, then network cards, in the order of the configuration.
    virtio: Vec<Arc<Mutex<Mmio>>>,
    handles: Handles,
    timeline: Timeline,
    pc: PcDevices,
    has_pit: bool,
    /// Also keeps the routes of its interrupts for as long as its parts.
    vm: Arc<VmFd>,
}

/// The parts of a machine that is being built.
struct New {
    vm: Arc<VmFd>,
    fds: Vec<VcpuFd>,
    devices: Devices,
}

impl New {
    fn make(
        kvm: &Kvm,
        config: &MachineConfig,
        files: &Files,
        ram: &GuestRam,
        output: Output,
        owner: &Owner,
    ) -> Result<Self> {
        let timeline = &owner.timeline;
        let vm = Arc::new(vm::create_vm(kvm)?);
        timeline.reach(Mark::VmCreated);
        memory::map_into_guest(&vm, ram)?;
        timeline.reach(Mark::MemoryReady);
        let devices = Devices::build(config, files, &vm, ram, output, owner)?;
        if let Some(saved) = files.start.saved() {
            saved.restore_devices(&devices)?;
        }
        vm::create_chips(&vm)?;
        devices.connect(&vm)?;
        let fds = vm::create_vcpus(&vm, kvm, config)?;
        fds.iter().for_each(|fd| timeline.made_cpu(fd));
        Ok(Self { vm, fds, devices })
    }

    fn with_pit(self, is_needed: bool) -> Result<Self> {
        if is_needed {
            vm::create_pit(&self.vm)?;
        }
        Ok(self)
    }
}

impl Machine {
    /// Builds what `config` describes of `files` in `ram`: with the kernel loaded into RAM that is zero, or with the saved
    /// state of another machine like it.
    pub fn build(
        kvm: &Kvm,
        config: &MachineConfig,
        files: &Files,
        ram: &GuestRam,
        console: Console,
        owner: &Owner,
    ) -> Result<Self> {
        let timeline = &owner.timeline;
        let make = || New::make(kvm, config, files, ram, console.output(), owner);
        let (New { vm, fds, devices }, has_pit) = match &files.start {
            Start::Boot { kernel, initrd } => {
                let load = || {
                    let kernel = boot::load(config, kernel, initrd.as_ref(), ram)?;
                    timeline.reach(Mark::KernelLoaded);
                    Ok(kernel)
                };
                // Making a VM is mostly waiting for the host's kernel.
                let (kernel, new) = worker::join_concurrently(load, || {
                    let new = make()?;
                    vm::write_tables(config, ram, new.devices.virtio.len())?;
                    Ok(new)
                })?;
                vm::set_boot_state(&new.fds[0], ram, kernel.entry)?;
                let has_pit = vm::needs_pit(&kernel, config);
                (new.with_pit(has_pit)?, has_pit)
            }
            Start::Saved(saved, renewal) => {
                let new = make()?.with_pit(saved.has_pit())?;
                saved.restore(*renewal, &new, config, ram)?;
                (new, saved.has_pit())
            }
        };
        let coalesced = coalesce_output(&vm, config, &fds[0])?.map(Arc::new);
        let (ports, mmio) = (Arc::new(devices.ports), Arc::new(devices.mmio));
        let buses = Buses { ports, mmio, coalesced };
        let vcpu = |(index, fd)| Vcpu {
            fd,
            index,
            buses: buses.clone(),
            events: owner.events.clone(),
            timeline: timeline.clone(),
            cpu_time: Duration::ZERO,
            is_between_instructions: true,
        };
        let vcpus = (0..).zip(fds).map(vcpu).collect();
        let console = ConsoleWork::new(console, devices.serial, buses.clone(), devices.reported);
        let (virtio, handles, timeline) = (devices.virtio, devices.handles, timeline.clone());
        let board = Board { buses, virtio, handles, timeline, pc: devices.pc, has_pit, vm };
        Ok(Self { vcpus, console, board })
    }

    /// What the console is connected to.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console.console
    }

    /// Starts devices and vCPUs.
    pub fn start(self) -> Result<RunningMachine> {
        for device in &self.board.virtio {
            lock(device).transport.resume()?;
        }
        let console = Worker::spawn(self.console)?;
        self.board.timeline.reach(Mark::CpuEntered);
        let vcpus = self.vcpus.into_iter().map(Worker::spawn).collect::<Result<_>>()?;
        Ok(RunningMachine { vcpus, console, board: self.board })
    }

    /// Starts it again after a stop. The guest's clocks have gone on meanwhile; KVM_KVMCLOCK_CTRL keeps its watchdogs quiet.
    pub fn resume(self) -> Result<RunningMachine> {
        for vcpu in &self.vcpus {
            // Fails where the guest does not use kvmclock, which then has nothing to show.
            let _ = vcpu.fd.kvmclock_ctrl();
        }
        self.start()
    }

    /// A machine that was stopped does not run again.
    pub fn ended(self) -> Self {
        self.board.timeline.reach(Mark::End);
        self
    }

    /// What reaches its devices.
    pub fn handles(&self) -> &Handles {
        &self.board.handles
    }

    /// Makes `change` to the disk with this index. Its driver gets an interrupt if the disk is another one then.
    pub fn change_disk(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Block) -> Result<()>,
    ) -> Result<()> {
        let disk = self.board.virtio.get(index).context("there is no such disk")?;
        lock(disk).transport.change(change)
    }

    /// Makes `change` to the network card with this index.
    pub fn change_card(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Net) -> Result<()>,
    ) -> Result<()> {
        let cards = self.board.virtio.iter().skip(self.board.handles.disks.len());
        let card = cards.take(self.board.handles.cards.len()).nth(index);
        lock(card.context("there is no such network card")?).transport.change(change)
    }

    /// Takes the machine apart; what it was connected to stays as it is.
    pub fn into_console(self) -> Console {
        self.console.console
    }
}

impl RunningMachine {
    /// Stops CPUs, then devices, then the console, whose last words are written out.
    pub fn stop(self) -> Result<Machine> {
        self.stop_and(|_| {})
    }

    /// The same, for good.
    pub fn end(self) -> Result<Machine> {
        self.stop_and(|timeline| timeline.reach(Mark::End))
    }

    /// `then` follows the guest's last instruction.
    fn stop_and(self, then: impl FnOnce(&Timeline)) -> Result<Machine> {
        self.vcpus.iter().for_each(Worker::ask_to_stop);
        let vcpus: Option<Vec<_>> = self.vcpus.into_iter().map(Worker::stop).collect();
        self.board.buses.flush_coalesced_writes();
        then(&self.board.timeline);
        self.console.ask_to_stop();
        self.board.virtio.iter().for_each(|device| lock(device).transport.ask_to_pause());
        self.board.virtio.iter().for_each(|device| lock(device).transport.pause());
        let vcpus = vcpus.context("a CPU's thread panicked")?;
        let console = self.console.stop().context("the console's thread panicked")?;
        Ok(Machine { vcpus, console, board: self.board })
    }
}

impl Board {
    /// What `halt` was, with what the guest's kernel has printed in mind.
    fn explain(&self, halt: Halt) -> Halt {
        self.handles.panicked.explain(halt)
    }
}

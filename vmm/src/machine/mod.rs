//! A machine, stopped or running. Only `Machine::build` reads a `MachineConfig`.

mod devices;
pub mod started;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use self::devices::{Devices, coalesce_output, irqfd, without_kvmclock};
use crate::bus::SharedDevice;
use crate::config::MachineConfig;
use crate::devices::console::{Console, ConsoleWork};
use crate::devices::power::PanicFlag;
use crate::event::EventSender;
use crate::files::Files;
use crate::memory::{self, GuestRam};
use crate::sync::lock;
use crate::timeline::{Mark, Timeline};
use crate::trace::ExitTrace;
use crate::vcpu::{Buses, Vcpu};
use crate::virtio::balloon_handle::BalloonHandle;
use crate::virtio::block::Block;
use crate::virtio::disk_counts::DiskCounts;
use crate::virtio::mem_handle::MemHandle;
use crate::virtio::mmio::Mmio;
use crate::worker::{self, Worker};
use crate::x86_64::acpi::{self, Hardware};
use crate::x86_64::cpuid::CpuidTemplate;
use crate::x86_64::{boot, regs, smbios};
use crate::{host, layout, process};

/// A machine that does not run.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    console: ConsoleWork,
    board: Board,
}

/// A machine whose CPUs run.
pub struct RunningMachine {
    vcpus: Vec<Worker<Vcpu>>,
    console: Worker<ConsoleWork>,
    board: Board,
}

/// What is the same in a machine that runs and one that does not.
struct Board {
    buses: Buses,
    power_button: EventFd,
    balloon: Option<BalloonHandle>,
    memory: Option<MemHandle>,
    disks: Vec<Arc<DiskCounts>>,
    /// The disks, and other virtio devices behind them.
    virtio: Vec<Arc<Mutex<Mmio>>>,
    panicked: PanicFlag,
    timeline: Timeline,
    /// Keeps the VM, and with it the routes of its interrupts, for as long as its parts.
    _vm: Arc<VmFd>,
}

impl Machine {
    /// Builds what `config` describes of `files` in `ram`, which is zero, with the kernel loaded.
    pub fn build(
        config: &MachineConfig,
        files: &Files,
        kvm: &Kvm,
        ram: &GuestRam,
        console: Console,
        events: EventSender,
        timeline: Timeline,
    ) -> Result<Self> {
        let load = || {
            let entry = boot::load(config, files, ram)?;
            timeline.reach(Mark::KernelLoaded);
            Ok(entry)
        };
        // Making a VM is mostly waiting for the host's kernel.
        let rest =
            || Self::build_without_kernel(config, files, kvm, ram, console, events, &timeline);
        let (entry, machine) = worker::join_concurrently(load, rest)?;
        regs::set_boot_state(&machine.vcpus[0].fd, ram, entry)?;
        process::trim_heap();
        Ok(machine)
    }

    fn build_without_kernel(
        config: &MachineConfig,
        files: &Files,
        kvm: &Kvm,
        ram: &GuestRam,
        console: Console,
        events: EventSender,
        timeline: &Timeline,
    ) -> Result<Self> {
        let vm = Arc::new(create_vm(kvm, config)?);
        timeline.reach(Mark::VmCreated);
        memory::map_into_guest(&vm, ram)?;
        timeline.reach(Mark::MemoryReady);

        let cpus = create_cpus(&vm, kvm, config, timeline)?;

        let devices = Devices::build(config, files, &vm, ram, console.output(), &events, timeline)?;
        let Devices { ports, mmio, serial, panicked, init_runs, balloon, memory, disks, virtio } =
            devices;
        write_tables(config, ram, virtio.len())?;
        let coalesced = coalesce_output(&vm, config, &cpus[0])?.map(Arc::new);
        let buses = Buses { ports: Arc::new(ports), mmio: Arc::new(mmio), coalesced };
        let vcpu = |(index, fd)| Vcpu {
            fd,
            index,
            buses: buses.clone(),
            events: events.clone(),
            trace: config.trace_exits.then(ExitTrace::default),
            cpu_time: Duration::ZERO,
        };
        let vcpus = (0..).zip(cpus).map(vcpu).collect();
        let power_button = irqfd(&vm, layout::EVENT_GSI)?;
        let console = ConsoleWork::new(console, serial, buses.clone(), init_runs, events.clone());
        let timeline = timeline.clone();
        let board = Board {
            buses,
            power_button,
            balloon,
            memory,
            disks,
            virtio,
            panicked,
            timeline,
            _vm: vm,
        };
        Ok(Self { vcpus, console, board })
    }

    /// Connects the console: the last thing to do before the start, when nothing else can go wrong.
    pub fn connect(&mut self, config: &MachineConfig) -> Result<()> {
        self.console.console.connect(config)
    }

    /// Starts devices and CPUs.
    pub fn start(self) -> Result<RunningMachine> {
        for device in self.board.devices() {
            lock(device).resume()?;
        }
        let console = Worker::spawn(self.console)?;
        self.board.timeline.reach(Mark::CpuEntered);
        let vcpus = self.vcpus.into_iter().map(Worker::spawn).collect::<Result<_>>()?;
        Ok(RunningMachine { vcpus, console, board: self.board })
    }

    /// Starts it again after a stop. The guest's clocks have gone on meanwhile; its watchdogs are told not to mind.
    pub fn resume(self) -> Result<RunningMachine> {
        for vcpu in &self.vcpus {
            // Fails where the guest does not use kvmclock: nobody could be told then.
            let _ = vcpu.fd.kvmclock_ctrl();
        }
        self.start()
    }

    /// A machine that was stopped does not run again.
    pub fn ended(self) -> Self {
        self.board.timeline.reach(Mark::End);
        self
    }

    /// What its CPUs exited for, if that was asked for.
    pub fn traces(&self) -> impl Iterator<Item = &ExitTrace> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.trace.as_ref())
    }

    /// What has gone through each disk since the guest's last reset.
    pub fn disks(&self) -> impl Iterator<Item = &Arc<DiskCounts>> {
        self.board.disks.iter()
    }

    /// Lets `change` at the disk with this index; its driver is told what has become of it.
    pub fn change_disk(&mut self, index: usize, change: impl FnOnce(&mut Block)) -> Result<()> {
        let device = self.board.virtio.get(index).context("there is no such disk")?;
        ensure!(lock(device).change(change), "the disk's thread is lost");
        Ok(())
    }

    /// What sets the guest's balloon, if the machine has one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.board.balloon.as_ref()
    }

    /// What has memory plugged, if the machine has room for more.
    pub fn memory(&self) -> Option<&MemHandle> {
        self.board.memory.as_ref()
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
        self.board.buses.carry_out_coalesced();
        then(&self.board.timeline);
        self.console.ask_to_stop();
        self.board.devices().for_each(|device| lock(device).ask_to_pause());
        self.board.devices().for_each(|device| lock(device).pause());
        let vcpus = vcpus.context("a CPU's thread panicked")?;
        let console = self.console.stop().context("the console's thread panicked")?;
        Ok(Machine { vcpus, console, board: self.board })
    }
}

impl Board {
    fn devices(&self) -> impl Iterator<Item = &SharedDevice> {
        self.buses.mmio.devices().chain(self.buses.ports.devices())
    }
}

fn create_vm(kvm: &Kvm, config: &MachineConfig) -> Result<VmFd> {
    let vm = kvm.create_vm().context("KVM cannot make a virtual machine")?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(layout::KVM_TSS as usize).context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    if without_kvmclock(&config.kernel_cmdline()) {
        // With port 0x61, through which Linux gates the PIT's channel 2 to calibrate.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).context("KVM_CREATE_PIT2")?;
    }
    Ok(vm)
}

/// The CPUs, each with its CPUID and MSRs, and counted.
fn create_cpus(
    vm: &VmFd,
    kvm: &Kvm,
    config: &MachineConfig,
    timeline: &Timeline,
) -> Result<Vec<VcpuFd>> {
    let cpuid = CpuidTemplate::new(kvm, config.cpus)?;
    let create = |index| {
        let fd = vm
            .create_vcpu(config.cpus.apic_id(index).into())
            .with_context(|| format!("KVM cannot make CPU {index}"))?;
        fd.set_cpuid2(&cpuid.for_cpu(index)?).context("KVM_SET_CPUID2")?;
        if cpuid.xcr0() != 0 {
            regs::set_xcr0(&fd, cpuid.xcr0())?;
        }
        regs::set_msrs(&fd)?;
        timeline.count_exits_of(&fd);
        Ok(fd)
    };
    (0..config.cpus.count()).map(create).collect()
}

fn write_tables(config: &MachineConfig, ram: &GuestRam, virtio_devices: usize) -> Result<()> {
    let rtc = without_kvmclock(&config.kernel_cmdline());
    let hardware = Hardware { cpus: config.cpus, virtio_devices, rtc, uart: config.uart };
    acpi::write(ram, hardware)?;
    let random = uuid::Builder::from_random_bytes(host::random()?).into_uuid();
    let uuid = config.uuid.unwrap_or(random);
    smbios::write(ram, config.cpus, config.mem.bytes(), uuid)
}

//! A machine, stopped or running. Only `Machine::build` reads a `MachineConfig`.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, SharedDevice, lock};
use crate::config::MachineConfig;
use crate::devices::console::{Console, ConsoleWork};
use crate::devices::power::{I8042, PanicFlag, Power, Pvpanic};
use crate::devices::rtc::Rtc;
use crate::devices::serial::SerialPort;
use crate::disk_image::DiskImage;
use crate::event::{EventSender, Halt};
use crate::memory::{self, GuestRam};
use crate::vcpu::{Buses, Vcpu};
use crate::virtio::VirtioDevice;
use crate::virtio::block::Block;
use crate::virtio::mmio::{Mmio, QUEUE_NOTIFY};
use crate::virtio::rng::Rng;
use crate::virtio::transport::Transport;
use crate::worker::{self, Worker};
use crate::x86_64::cpuid::CpuidTemplate;
use crate::x86_64::{acpi, boot, regs, smbios};
use crate::{host, layout};

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
    panicked: PanicFlag,
    /// Keeps the VM, and with it the routes of its interrupts, for as long as its parts.
    _vm: VmFd,
}

impl Machine {
    /// Builds what `config` describes in `ram`, which is zero, with the kernel loaded.
    pub fn build(
        config: &MachineConfig,
        kvm: &Kvm,
        ram: &GuestRam,
        console: Console,
        events: EventSender,
    ) -> Result<Self> {
        // Making a VM is mostly waiting for the host's kernel.
        let board = || Self::build_without_kernel(config, kvm, ram, console, events);
        let (entry, machine) = worker::at_once(|| boot::load(config, ram), board)?;
        regs::set_boot_state(&machine.vcpus[0].fd, ram, entry)?;
        Ok(machine)
    }

    fn build_without_kernel(
        config: &MachineConfig,
        kvm: &Kvm,
        ram: &GuestRam,
        console: Console,
        events: EventSender,
    ) -> Result<Self> {
        let vm = create_vm(kvm, config)?;
        memory::map_into_guest(&vm, ram)?;

        let panicked = PanicFlag::default();
        let serial = Arc::new(Mutex::new(SerialPort::new(
            irqfd(&vm, layout::SERIAL_GSI)?,
            console.output(),
            panicked.clone(),
        )));
        let console = ConsoleWork { console, serial: serial.clone(), events: events.clone() };
        let mut ports = Bus::default();
        ports.insert(layout::SERIAL_PORTS, serial)?;
        add_pc_devices(&mut ports, &panicked, &events)?;

        let mut mmio = Bus::default();
        let virtio = virtio_devices(config)?;
        let count = virtio.len();
        for (index, device) in virtio.into_iter().enumerate() {
            add_virtio(&mut mmio, &vm, ram, index, device)?;
        }
        acpi::write(ram, config.cpus, count)?;
        let random = uuid::Builder::from_random_bytes(host::random()?).into_uuid();
        let uuid = config.uuid.unwrap_or(random);
        smbios::write(ram, config.cpus, config.mem.bytes(), uuid)?;

        let buses = Buses { ports: Arc::new(ports), mmio: Arc::new(mmio) };
        let cpuid = CpuidTemplate::new(kvm, config.cpus)?;
        let mut vcpus = Vec::new();
        for index in 0..config.cpus.count() {
            let fd = vm
                .create_vcpu(config.cpus.apic_id(index).into())
                .with_context(|| format!("KVM cannot make CPU {index}"))?;
            fd.set_cpuid2(&cpuid.for_cpu(index)?).context("KVM_SET_CPUID2")?;
            if cpuid.xcr0() != 0 {
                regs::set_xcr0(&fd, cpuid.xcr0())?;
            }
            regs::set_msrs(&fd)?;
            let (buses, events) = (buses.clone(), events.clone());
            vcpus.push(Vcpu { fd, index, buses, events });
        }
        let power_button = irqfd(&vm, layout::EVENT_GSI)?;
        let board = Board { buses, power_button, panicked, _vm: vm };
        Ok(Self { vcpus, console, board })
    }

    /// Starts devices and CPUs. The console is connected now, when nothing else can go wrong.
    pub fn start(mut self) -> Result<RunningMachine> {
        self.console.console.connect()?;
        for device in self.board.devices() {
            lock(device).resume()?;
        }
        let console = Worker::spawn(self.console)?;
        let vcpus = self.vcpus.into_iter().map(Worker::spawn).collect::<Result<_>>()?;
        Ok(RunningMachine { vcpus, console, board: self.board })
    }

    /// Takes the machine apart; what it was connected to stays as it is.
    pub fn into_console(self) -> Console {
        self.console.console
    }
}

impl RunningMachine {
    /// Presses the power button: an interrupt to the ACPI event device.
    pub fn press_power_button(&self) -> Result<()> {
        Ok(self.board.power_button.write(1)?)
    }

    /// What `halt` was, with what the guest's kernel has printed in mind.
    pub fn explain(&self, halt: Halt) -> Halt {
        self.board.panicked.explain(halt)
    }

    /// Stops CPUs, then devices, then the console, whose last words are written out.
    pub fn stop(self) -> Result<Machine> {
        self.vcpus.iter().for_each(Worker::ask_to_stop);
        let vcpus: Option<Vec<_>> = self.vcpus.into_iter().map(Worker::stop).collect();
        for device in self.board.devices() {
            lock(device).pause();
        }
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
    if needs_pit(&config.kernel_cmdline()) {
        // With port 0x61, through which Linux gates the PIT's channel 2 to calibrate.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).context("KVM_CREATE_PIT2")?;
    }
    Ok(vm)
}

/// A guest that does without kvmclock measures its TSC against the PIT.
fn needs_pit(cmdline: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| ["no-kvmclock", "nopv"].contains(&word))
}

/// An event that raises `gsi` when it is written.
fn irqfd(vm: &VmFd, gsi: u32) -> Result<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&event, gsi).with_context(|| format!("KVM_IRQFD for GSI {gsi}"))?;
    Ok(event)
}

fn add_pc_devices(ports: &mut Bus, panicked: &PanicFlag, events: &EventSender) -> Result<()> {
    let events = || events.clone();
    ports.insert(layout::RTC_PORTS, Arc::new(Mutex::new(Rtc::default())))?;
    ports.insert(layout::POWER_PORTS, Arc::new(Mutex::new(Power { events: events() })))?;
    ports.insert(layout::I8042_PORTS, Arc::new(Mutex::new(I8042 { events: events() })))?;
    let pvpanic = Pvpanic { panicked: panicked.clone(), events: events() };
    ports.insert(layout::PVPANIC_PORTS, Arc::new(Mutex::new(pvpanic)))
}

/// The one list of virtio devices: disks first, so that the first is /dev/vda.
fn virtio_devices(config: &MachineConfig) -> Result<Vec<Box<dyn VirtioDevice>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let image = DiskImage::open(disk)?;
        let block = Block::new(image, index, disk.id.as_deref(), config.cpus.count());
        devices.push(Box::new(block));
    }
    devices.push(Box::new(Rng));
    Ok(devices)
}

fn add_virtio(
    mmio: &mut Bus,
    vm: &VmFd,
    ram: &GuestRam,
    index: usize,
    device: Box<dyn VirtioDevice>,
) -> Result<()> {
    let base = layout::virtio_mmio(index);
    let interrupt = irqfd(vm, layout::virtio_gsi(index))?;
    let transport = Transport::new(device, ram.clone(), interrupt)?;
    for (queue, kick) in (0u32..).zip(transport.kicks()) {
        vm.register_ioevent(kick, &IoEventAddress::Mmio(base + QUEUE_NOTIFY), queue)
            .context("KVM_IOEVENTFD")?;
    }
    mmio.insert(base..base + layout::VIRTIO_MMIO_SIZE, Arc::new(Mutex::new(Mmio::new(transport))))
}

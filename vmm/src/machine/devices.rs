//! What is on a machine's buses: a serial port and other PC devices, and virtio devices.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Files, Handles, Owner};
use crate::bus::Bus;
use crate::coalesced::CoalescedWrites;
use crate::config::{Mac, MachineConfig, Uart, VhostUserKind};
use crate::devices::boot_timer::BootTimer;
use crate::devices::guest_report::{GuestReport, Reported};
use crate::devices::output::Output;
use crate::devices::pci::ConfigAddress;
use crate::devices::power::{I8042, PanicFlag, Power, Pvpanic};
use crate::devices::rtc::Rtc;
use crate::devices::serial::SerialPort;
use crate::layout;
use crate::memory::hotplug::Hotplug;
use crate::memory::{self, GuestRam};
use crate::random;
use crate::rate::Limiter;
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::mem::Mem;
use crate::virtio::mmio::{Mmio, QUEUE_NOTIFY};
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::transport::Transport;
use crate::virtio::vhost_user::VhostUser;
use crate::virtio::vsock::Vsock;

/// The devices of a machine.
pub(super) struct Devices {
    /// Those at I/O ports.
    pub ports: Bus,
    /// Those in memory.
    pub mmio: Bus,
    /// The port that the console is connected to.
    pub serial: Arc<Mutex<SerialPort>>,
    /// What the guest's init has reported.
    pub reported: Reported,
    /// What a guest can read or change of the other devices at ports.
    pub pc: PcDevices,
    /// Raises the interrupt of a new identity.
    pub new_identity: EventFd,
    /// What the machine's owner reaches them by.
    pub handles: Handles,
    /// Those that are virtio devices, disks first.
    pub virtio: Vec<Arc<Mutex<Mmio>>>,
}

/// Devices at ports that have a state.
pub(super) struct PcDevices {
    rtc: Arc<Mutex<Rtc>>,
    pci: Arc<Mutex<ConfigAddress>>,
    pvpanic: Arc<Mutex<Pvpanic>>,
    reported: Reported,
}

/// That state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PcSaved {
    rtc: u8,
    pci: u32,
    has_panicked: bool,
    init_runs: bool,
}

impl PcDevices {
    pub fn save(&self) -> PcSaved {
        PcSaved {
            rtc: lock(&self.rtc).index,
            pci: lock(&self.pci).0,
            has_panicked: lock(&self.pvpanic).reported,
            init_runs: self.reported.init_runs(),
        }
    }

    pub fn restore(&self, saved: &PcSaved) {
        lock(&self.rtc).index = saved.rtc;
        lock(&self.pci).0 = saved.pci;
        lock(&self.pvpanic).reported = saved.has_panicked;
        self.reported.set_init_runs(saved.init_runs);
    }
}

impl Devices {
    /// Makes the devices that `config` names, with the memory slots that they need. What the guest prints goes to `output`.
    pub fn build(
        config: &MachineConfig,
        files: &Files,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
        output: Output,
        owner: &Owner,
    ) -> Result<Self> {
        let panicked = PanicFlag::default();
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let saved = files.start.saved();
        let mut serial = new_serial(config, vm, output.clone(), &panicked, owner)?;
        if let Some(saved) = saved {
            serial = serial.restored(&saved.serial)?;
        }
        let serial = add_serial(&mut ports, &mut mmio, config, serial)?;
        let reported = Reported::default();
        let pc = add_pc_devices(&mut ports, owner, reported.clone())?;
        if config.boot_timer {
            mmio.insert(
                layout::BOOT_TIMER,
                Arc::new(Mutex::new(BootTimer::start(saved.is_some()))),
            )?;
        }
        let (timeline, events) = (owner.timeline.clone(), owner.events.clone());
        let report = GuestReport { reported: reported.clone(), timeline, events };
        ports.insert(layout::REPORT_PORTS, Arc::new(Mutex::new(report)))?;

        let (power_button, new_identity) = (line()?, line()?);
        let mut handles = Handles {
            balloon: None,
            memory: None,
            disks: Vec::new(),
            cards: Vec::new(),
            vsock: None,
            serial: serial.clone(),
            output,
            panicked,
            power_button,
        };
        let hotplug = Hotplug::new(ram, vm.clone());
        let devices = virtio_devices(config, files, hotplug, &mut handles)?;
        let pages = Arc::new(memory::virtio_pages(vm, devices.len())?);
        let mut virtio = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            virtio.push(add_virtio(&mut mmio, ram, (pages.clone(), index), device)?);
        }
        Ok(Self { ports, mmio, serial, reported, pc, new_identity, handles, virtio })
    }

    /// Connects the devices' interrupt lines with the interrupt chips of `vm`, and doorbells with their devices.
    pub fn connect(&self, vm: &VmFd) -> Result<()> {
        let connect = |line: &EventFd, gsi: u32| {
            vm.register_irqfd(line, gsi).with_context(|| format!("KVM_IRQFD for GSI {gsi}"))
        };
        connect(lock(&self.serial).line(), layout::SERIAL_GSI)?;
        connect(&self.handles.power_button, layout::EVENT_GSI)?;
        connect(&self.new_identity, layout::GENERATION_GSI)?;
        for (index, device) in self.virtio.iter().enumerate() {
            let transport = &lock(device).transport;
            connect(transport.line(), layout::virtio_gsi(index))?;
            let doorbell = IoEventAddress::Mmio(layout::virtio_mmio(index) + QUEUE_NOTIFY);
            for (queue, kick) in (0u32..).zip(transport.kicks()) {
                vm.register_ioevent(kick, &doorbell, queue).context("KVM_IOEVENTFD")?;
            }
        }
        Ok(())
    }
}

/// An interrupt line, not connected yet.
fn line() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// For what the guest sends through the serial port: a byte a time, thousands of times a boot. `None` where KVM cannot.
pub(super) fn coalesce_output(
    vm: &Arc<VmFd>,
    config: &MachineConfig,
    cpu: &VcpuFd,
) -> Result<Option<CoalescedWrites>> {
    let data = match config.uart {
        Uart::Ports if vm.check_extension(Cap::CoalescedPio) => {
            IoEventAddress::Pio(layout::SERIAL_PORTS.start)
        }
        Uart::Memory if vm.check_extension(Cap::CoalescedMmio) => {
            IoEventAddress::Mmio(layout::SERIAL_MMIO.start)
        }
        _ => return Ok(None),
    };
    CoalescedWrites::new(vm.clone(), data, cpu).map(Some)
}

fn new_serial(
    config: &MachineConfig,
    vm: &VmFd,
    output: Output,
    panicked: &PanicFlag,
    owner: &Owner,
) -> Result<SerialPort> {
    let page = match config.uart {
        Uart::Ports => None,
        Uart::Memory => Some(memory::serial_page(vm)?),
    };
    let timeline = owner.timeline.clone();
    Ok(SerialPort::new(line()?, output, panicked.clone(), timeline, page))
}

fn add_serial(
    ports: &mut Bus,
    mmio: &mut Bus,
    config: &MachineConfig,
    serial: SerialPort,
) -> Result<Arc<Mutex<SerialPort>>> {
    let serial = Arc::new(Mutex::new(serial));
    ports.insert(layout::SERIAL_PORTS, serial.clone())?;
    if config.uart == Uart::Memory {
        mmio.insert(layout::SERIAL_MMIO, serial.clone())?;
    }
    Ok(serial)
}

fn add_pc_devices(ports: &mut Bus, owner: &Owner, reported: Reported) -> Result<PcDevices> {
    let events = || owner.events.clone();
    let pvpanic = Pvpanic { reported: false, events: events() };
    let pc = PcDevices {
        rtc: Arc::default(),
        pci: Arc::default(),
        pvpanic: Arc::new(Mutex::new(pvpanic)),
        reported,
    };
    // Where a guest does not need the clock ACPI says that there is none, and the clock costs no exits.
    ports.insert(layout::RTC_PORTS, pc.rtc.clone())?;
    ports.insert(layout::PCI_PORTS, pc.pci.clone())?;
    ports.insert(layout::POWER_PORTS, Arc::new(Mutex::new(Power { events: events() })))?;
    ports.insert(layout::I8042_PORTS, Arc::new(Mutex::new(I8042 { events: events() })))?;
    ports.insert(layout::PVPANIC_PORTS, pc.pvpanic.clone())?;
    Ok(pc)
}

/// The one list of virtio devices: disks first, so that the first is /dev/vda, then network cards. Adds what they are reached by.
fn virtio_devices(
    config: &MachineConfig,
    files: &Files,
    hotplug: Option<Hotplug>,
    handles: &mut Handles,
) -> Result<Vec<Box<dyn VirtioDevice>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, (disk, image)) in config.disk.iter().zip(&files.disks).enumerate() {
        let image = image.try_clone()?;
        let mut block = Block::new(image, index, disk.id.as_deref(), config.cpus.count())?;
        block.limiter = Limiter::new(&disk.limit, Instant::now());
        handles.disks.push(block.counts().clone());
        devices.push(Box::new(block));
    }
    for (index, (card, wire)) in config.net.iter().zip(&files.wires).enumerate() {
        let mac = card.mac.map_or_else(|| random::bytes().map(Mac::local), Ok)?;
        let mut net = Net::new(wire.clone(), index, mac, card.mtu);
        net.rx.limiter = Limiter::new(&card.rx_limit, Instant::now());
        net.tx.limiter = Limiter::new(&card.tx_limit, Instant::now());
        handles.cards.push(net.counts().clone());
        devices.push(Box::new(net));
    }
    devices.push(Box::new(Rng { limiter: Limiter::new(&config.entropy_limit, Instant::now()) }));
    if let Some(target) = config.balloon_target() {
        let balloon = Balloon::new(config.mem.bytes(), target, config.balloon_features)?;
        handles.balloon = Some(balloon.handle());
        devices.push(Box::new(balloon));
    }
    if let Some(mem) = hotplug.map(Mem::new) {
        handles.memory = Some(mem.handle());
        devices.push(Box::new(mem));
    }
    if let Some(vsock) = &config.vsock {
        let host = files.vsock.clone().unwrap_or_default();
        let vsock = Vsock::new(vsock.cid, host);
        handles.vsock = Some(vsock.counts().clone());
        devices.push(Box::new(vsock));
    }
    let shares = config.share.iter().map(|share| VhostUserKind::Files(share.tag.clone()));
    let kinds = shares.chain(config.vhost_user.iter().map(|other| other.kind.clone()));
    for (index, (kind, backend)) in kinds.zip(&files.backends).enumerate() {
        devices.push(Box::new(VhostUser::new(backend.clone(), kind, index)?));
    }
    Ok(devices)
}

fn add_virtio(
    mmio: &mut Bus,
    ram: &GuestRam,
    (pages, index): (Arc<MmapRegion>, usize),
    device: Box<dyn VirtioDevice>,
) -> Result<Arc<Mutex<Mmio>>> {
    let base = layout::virtio_mmio(index);
    let transport = Transport::new(device, ram.clone(), (pages, index), line()?)?;
    let device = Arc::new(Mutex::new(Mmio::new(transport)));
    mmio.insert(base..base + layout::VIRTIO_MMIO_SIZE, device.clone())?;
    Ok(device)
}

//! What is on a machine's buses: a serial port and other PC devices, and virtio devices.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::coalesced::CoalescedWrites;
use crate::config::{MachineConfig, Uart};
use crate::devices::boot_timer::BootTimer;
use crate::devices::output::Output;
use crate::devices::power::{I8042, PanicFlag, Power, Pvpanic};
use crate::devices::rtc::Rtc;
use crate::devices::serial::SerialPort;
use crate::devices::told::{InitRuns, Told};
use crate::event::EventSender;
use crate::files::Files;
use crate::layout;
use crate::memory::hotplug::Hotplug;
use crate::memory::{self, GuestRam};
use crate::timeline::Timeline;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::balloon_handle::BalloonHandle;
use crate::virtio::block::Block;
use crate::virtio::disk_counts::DiskCounts;
use crate::virtio::mem::Mem;
use crate::virtio::mem_handle::MemHandle;
use crate::virtio::mmio::{Mmio, QUEUE_NOTIFY};
use crate::virtio::rate::Limiter;
use crate::virtio::rng::Rng;
use crate::virtio::transport::Transport;

/// The devices of a machine.
pub(super) struct Devices {
    /// Those at I/O ports.
    pub ports: Bus,
    /// Those in memory.
    pub mmio: Bus,
    /// The one that the console is connected to.
    pub serial: Arc<Mutex<SerialPort>>,
    /// What the guest has told by them.
    pub panicked: PanicFlag,
    /// The same.
    pub init_runs: InitRuns,
    /// Sets how much memory the guest does without, if the machine has a balloon.
    pub balloon: Option<BalloonHandle>,
    /// Has memory plugged, if the machine has room for more.
    pub memory: Option<MemHandle>,
    /// What goes through each disk.
    pub disks: Vec<Arc<DiskCounts>>,
    /// The virtio devices, disks first.
    pub virtio: Vec<Arc<Mutex<Mmio>>>,
}

impl Devices {
    /// Makes the devices that `config` names. What the guest prints goes to `output`.
    pub fn build(
        config: &MachineConfig,
        files: &Files,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
        output: Output,
        events: &EventSender,
        timeline: &Timeline,
    ) -> Result<Self> {
        let panicked = PanicFlag::default();
        let page = match config.uart {
            Uart::Ports => None,
            Uart::Memory => Some(memory::serial_page(vm)?),
        };
        let interrupt = irqfd(vm, layout::SERIAL_GSI)?;
        let serial = SerialPort::new(interrupt, output, panicked.clone(), timeline.clone(), page);
        let serial = Arc::new(Mutex::new(serial));
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(layout::SERIAL_PORTS, serial.clone())?;
        if config.uart == Uart::Memory {
            mmio.insert(layout::SERIAL_MMIO, serial.clone())?;
        }
        add_pc_devices(&mut ports, config, &panicked, events)?;
        if config.firecracker.as_ref().is_some_and(|flags| flags.boot_timer) {
            mmio.insert(layout::BOOT_TIMER, Arc::new(Mutex::new(BootTimer::start())))?;
        }
        let init_runs = InitRuns::default();
        let told = Told {
            init_runs: init_runs.clone(),
            timeline: timeline.clone(),
            events: events.clone(),
        };
        ports.insert(layout::TOLD_PORTS, Arc::new(Mutex::new(told)))?;
        let (mut devices, disks) = virtio_devices(config, files)?;
        let mut features = config.balloon_features;
        features.statistics &= config.api_sock.is_some(); // without it nobody can ask for them
        let balloon = config
            .balloon_target()
            .map(|target| Balloon::new(config.mem.bytes(), target, features));
        let balloon = balloon.transpose()?;
        let handle = balloon.as_ref().map(Balloon::handle);
        devices.extend(balloon.map(|balloon| Box::new(balloon) as Box<dyn VirtioDevice>));
        let memory = Hotplug::new(ram, vm.clone()).map(Mem::new);
        let mem_handle = memory.as_ref().map(Mem::handle);
        devices.extend(memory.map(|memory| Box::new(memory) as Box<dyn VirtioDevice>));
        let pages = Arc::new(memory::virtio_pages(vm, devices.len())?);
        let mut virtio = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            virtio.push(add_virtio(&mut mmio, vm, ram, (pages.clone(), index), device)?);
        }
        Ok(Self {
            ports,
            mmio,
            serial,
            panicked,
            init_runs,
            balloon: handle,
            memory: mem_handle,
            disks,
            virtio,
        })
    }
}

/// An event that raises `gsi` when it is written.
pub(super) fn irqfd(vm: &VmFd, gsi: u32) -> Result<EventFd> {
    let event = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&event, gsi).with_context(|| format!("KVM_IRQFD for GSI {gsi}"))?;
    Ok(event)
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

/// A guest that does without kvmclock measures its TSC against the PIT and asks the CMOS clock for the
/// time. To all others they would only cost exits.
pub(super) fn without_kvmclock(cmdline: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| ["no-kvmclock", "nopv"].contains(&word))
}

fn add_pc_devices(
    ports: &mut Bus,
    config: &MachineConfig,
    panicked: &PanicFlag,
    events: &EventSender,
) -> Result<()> {
    let events = || events.clone();
    if without_kvmclock(&config.kernel_cmdline()) {
        ports.insert(layout::RTC_PORTS, Arc::new(Mutex::new(Rtc::default())))?;
    }
    ports.insert(layout::POWER_PORTS, Arc::new(Mutex::new(Power { events: events() })))?;
    ports.insert(layout::I8042_PORTS, Arc::new(Mutex::new(I8042 { events: events() })))?;
    let pvpanic = Pvpanic { panicked: panicked.clone(), events: events() };
    ports.insert(layout::PVPANIC_PORTS, Arc::new(Mutex::new(pvpanic)))
}

type BoxedDevice = Box<dyn VirtioDevice>;

/// The one list of virtio devices but those that are about memory: disks first, so that the first is /dev/vda.
fn virtio_devices(
    config: &MachineConfig,
    files: &Files,
) -> Result<(Vec<BoxedDevice>, Vec<Arc<DiskCounts>>)> {
    let mut devices: Vec<BoxedDevice> = Vec::new();
    let mut counts = Vec::new();
    for (index, (disk, image)) in config.disk.iter().zip(&files.disks).enumerate() {
        let mut block = Block::new(image.again()?, index, disk.id.as_deref(), config.cpus.count());
        block.limiter = Limiter::new(&disk.limit, Instant::now());
        counts.push(block.counts());
        devices.push(Box::new(block));
    }
    let limiter = Limiter::new(&config.entropy_limit, Instant::now());
    devices.push(Box::new(Rng { limiter }));
    Ok((devices, counts))
}

fn add_virtio(
    mmio: &mut Bus,
    vm: &VmFd,
    ram: &GuestRam,
    (pages, index): (Arc<MmapRegion>, usize),
    device: Box<dyn VirtioDevice>,
) -> Result<Arc<Mutex<Mmio>>> {
    let base = layout::virtio_mmio(index);
    let interrupt = irqfd(vm, layout::virtio_gsi(index))?;
    let transport = Transport::new(device, ram.clone(), (pages, index), interrupt)?;
    for (queue, kick) in (0u32..).zip(transport.kicks()) {
        vm.register_ioevent(kick, &IoEventAddress::Mmio(base + QUEUE_NOTIFY), queue)
            .context("KVM_IOEVENTFD")?;
    }
    let device = Arc::new(Mutex::new(Mmio::new(transport)));
    mmio.insert(base..base + layout::VIRTIO_MMIO_SIZE, device.clone())?;
    Ok(device)
}

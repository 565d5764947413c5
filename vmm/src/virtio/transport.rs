//! A device between stopped, while the driver sets it up, and running on its thread.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use virtio_bindings::virtio_config as conf;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device_work::{DeviceWork, needs_reset};
use super::queue::{Interrupt, Virtqueue};
use super::registers::Registers;
use super::{Driver, VirtioDevice};
use crate::memory::GuestRam;
use crate::worker::Worker;

const COMMON_FEATURES: u64 =
    1 << conf::VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The status bits in the order in which a driver sets them (virtio 1.2, 3.1.1).
const STATUS_ORDER: [u32; 4] = [
    conf::VIRTIO_CONFIG_S_ACKNOWLEDGE,
    conf::VIRTIO_CONFIG_S_DRIVER,
    conf::VIRTIO_CONFIG_S_FEATURES_OK,
    conf::VIRTIO_CONFIG_S_DRIVER_OK,
];

/// A device and what its driver has set up.
pub struct Transport {
    pub(super) id: u32,
    /// Feature bits that are offered.
    pub(super) features: u64,
    pub(super) interrupt: Arc<Interrupt>,
    /// Feature bits that the driver has accepted.
    pub(super) driver_features: u64,
    /// The driver has accepted features past the 64th, of which none exists.
    pub(super) accepts_unknown: bool,
    /// Queues as the driver sets them up. Fixed from DRIVER_OK to the reset.
    pub(super) queues: Vec<Queue>,
    kicks: Vec<Arc<EventFd>>,
    ram: Arc<GuestRam>,
    /// The device's name.
    pub(super) name: String,
    pub(super) state: DeviceState,
    /// The device has no thread: it works only in [`serve`](Self::serve), so that a fuzzer's findings can be repeated,
    /// and miri can run it.
    #[cfg(any(test, fuzzing))]
    pub(super) by_hand: bool,
}

pub(super) enum DeviceState {
    Stopped(Box<dyn VirtioDevice>),
    Running(Worker<DeviceWork>),
    /// Stopped with its queues, to run again.
    Paused(DeviceWork),
    /// Its thread panicked or could not start.
    Dead,
}

impl Transport {
    /// `device`, stopped, with its rings in `ram`; its driver reads the page with the index `page` of `pages`. It
    /// raises `interrupt`, which becomes an irqfd.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        (pages, page): (Arc<MmapRegion>, usize),
        interrupt: EventFd,
    ) -> Result<Self> {
        let (mut queues, mut kicks) = (Vec::new(), Vec::new());
        for size in device.queue_sizes() {
            queues.push(Queue::new(size)?);
            kicks.push(Arc::new(EventFd::new(EFD_NONBLOCK)?));
        }
        let registers = Registers::new(pages, page, device.config())?;
        Ok(Self {
            id: device.id(),
            features: device.features() | COMMON_FEATURES,
            interrupt: Arc::new(Interrupt::new(registers, interrupt)),
            driver_features: 0,
            accepts_unknown: false,
            queues,
            kicks,
            ram: Arc::new(ram),
            name: device.name().to_owned(),
            state: DeviceState::Stopped(device),
            #[cfg(any(test, fuzzing))]
            by_hand: false,
        })
    }

    /// Written to when the driver has put requests into the queue of the same index.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// The interrupt line, which raises the driver's interrupt once it is an irqfd.
    pub fn line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// The registers that the driver reads.
    pub(super) fn registers(&self) -> &Registers {
        &self.interrupt.registers
    }

    /// The device's status.
    pub(super) fn status(&self) -> u32 {
        self.registers().get(VIRTIO_MMIO_STATUS)
    }

    /// Whether the driver may still set up features and queues.
    pub(super) fn in_setup(&self, wanted: u32) -> bool {
        let status = self.status();
        status & wanted == wanted && status & conf::VIRTIO_CONFIG_S_DRIVER_OK == 0
    }

    /// The driver writes the status: zero resets, any other value has to add the next bit.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let old = self.status();
        if value & conf::VIRTIO_CONFIG_S_FAILED != 0 {
            return self.registers().set_bits(VIRTIO_MMIO_STATUS, conf::VIRTIO_CONFIG_S_FAILED);
        }
        for (index, bit) in STATUS_ORDER.into_iter().enumerate() {
            let before: u32 = STATUS_ORDER[..index].iter().sum();
            if value & bit == 0 || old & bit != 0 || self.status() & before != before {
                continue;
            }
            if bit == conf::VIRTIO_CONFIG_S_FEATURES_OK && !self.features_are_ok() {
                return; // the bit stays clear, which the driver checks
            }
            self.registers().set_bits(VIRTIO_MMIO_STATUS, bit);
            if bit == conf::VIRTIO_CONFIG_S_DRIVER_OK
                && let Err(error) = self.activate()
            {
                needs_reset(&self.interrupt, &error);
            }
        }
    }

    pub(super) fn features_are_ok(&self) -> bool {
        !self.accepts_unknown
            && self.driver_features & !self.features == 0
            && self.driver_features & 1 << conf::VIRTIO_F_VERSION_1 != 0
    }

    /// The driver is ready: the device moves to its thread.
    fn activate(&mut self) -> Result<()> {
        self.connect()?;
        self.resume()
    }

    /// Connects the device with the driver's queues, so that it is paused.
    pub(super) fn connect(&mut self) -> Result<()> {
        let mut queues = Vec::new();
        for (queue, kick) in self.queues.iter().zip(&self.kicks) {
            let mut queue = Queue::try_from(queue.state())?;
            ensure!(!queue.ready() || queue.is_valid(&*self.ram), "a queue that is not in RAM");
            queue.set_event_idx(self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            let (ram, interrupt) = (self.ram.clone(), self.interrupt.clone());
            queues.push(Virtqueue::new(queue, ram, interrupt, kick.clone()));
        }
        let mut device = match std::mem::replace(&mut self.state, DeviceState::Dead) {
            DeviceState::Stopped(device) => device,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        let (interrupt, kicks) = (&self.interrupt, &self.kicks[..]);
        device.activate(&Driver { features: self.driver_features, interrupt, kicks });
        let work = DeviceWork {
            device,
            queues,
            kicks: self.kicks.clone(),
            interrupt: self.interrupt.clone(),
            cpu_time: Duration::ZERO,
            resume_at: None,
            stuck: false,
        };
        self.state = DeviceState::Paused(work);
        Ok(())
    }

    /// Returns to the state after power-on. No request is in flight any more then.
    fn reset(&mut self) {
        self.pause();
        self.state = match std::mem::replace(&mut self.state, DeviceState::Dead) {
            DeviceState::Paused(work) => DeviceState::Stopped(work.device),
            other => other,
        };
        if let DeviceState::Stopped(device) = &mut self.state {
            device.reset();
        }
        (self.driver_features, self.accepts_unknown) = (0, false);
        self.queues.iter_mut().for_each(QueueT::reset);
        self.registers().set(VIRTIO_MMIO_INTERRUPT_STATUS, 0);
        let dead = matches!(self.state, DeviceState::Dead);
        let status = if dead { conf::VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.registers().set(VIRTIO_MMIO_STATUS, status);
    }

    /// The driver takes queue `index` back. No request of it is in flight any more when this returns, and it is not
    /// served again before the next reset (virtio 1.2, 4.2.3.2).
    pub(super) fn stop_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return };
        queue.set_ready(false);
        self.pause();
        if let DeviceState::Paused(work) = &mut self.state {
            work.queues[index].stop();
        }
        if let Err(error) = self.resume() {
            needs_reset(&self.interrupt, &error);
        }
    }

    /// Has the device's thread stop, for a `pause` that follows.
    pub fn ask_to_pause(&self) {
        if let DeviceState::Running(worker) = &self.state {
            worker.ask_to_stop();
        }
    }

    /// The device's name, and the processor time of its thread since the driver was ready.
    pub fn cpu_time(&self) -> Option<(String, Duration)> {
        let time = match &self.state {
            DeviceState::Running(worker) => worker.cpu_time(),
            DeviceState::Paused(work) => work.cpu_time,
            DeviceState::Stopped(_) | DeviceState::Dead => return None,
        };
        Some((self.name.clone(), time))
    }

    /// Calls `change` with the device, a `D`, while it is stopped. The driver gets an interrupt if the configuration
    /// space has changed.
    pub fn change<D: VirtioDevice>(
        &mut self,
        change: impl FnOnce(&mut D) -> Result<()>,
    ) -> Result<()> {
        let (device, has_driver) = match &mut self.state {
            DeviceState::Stopped(device) => (device, false),
            DeviceState::Paused(work) => (&mut work.device, true),
            DeviceState::Running(_) | DeviceState::Dead => {
                bail!("{}: its thread is lost", self.name)
            }
        };
        let any: &mut dyn Any = &mut **device;
        let changed = change(any.downcast_mut().context("a device of another kind")?);
        if self.interrupt.registers.set_config(device.config()) && has_driver {
            self.interrupt.config_changed();
        }
        changed
    }

    /// Stops the device's thread; queues keep their position.
    pub fn pause(&mut self) {
        self.state = match std::mem::replace(&mut self.state, DeviceState::Dead) {
            DeviceState::Running(worker) => match worker.stop() {
                Some(work) if !work.stuck => DeviceState::Paused(work),
                _ => DeviceState::Dead,
            },
            #[cfg(any(test, fuzzing))]
            DeviceState::Paused(mut work) if self.by_hand => {
                work.settle();
                DeviceState::Paused(work)
            }
            other => other,
        };
    }

    /// Starts a device that `pause` stopped, or that is new. Requests may be queued already, by a driver that kicked
    /// too early.
    pub fn resume(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, DeviceState::Dead) {
            DeviceState::Paused(work) => {
                work.kicks.iter().try_for_each(|kick| kick.write(1))?;
                #[cfg(any(test, fuzzing))]
                if self.by_hand {
                    self.state = DeviceState::Paused(work);
                    return Ok(());
                }
                self.state = DeviceState::Running(Worker::spawn(work)?);
            }
            other => self.state = other,
        }
        Ok(())
    }

    /// Gives each kicked queue a turn, on this thread.
    #[cfg(any(test, fuzzing))]
    pub(super) fn serve(&mut self) {
        let DeviceState::Paused(work) = &mut self.state else { return };
        for index in (0..work.kicks.len()).filter(|_| self.by_hand) {
            if work.kicks[index].read().is_ok() {
                work.serve(index);
            }
        }
        for index in (0..work.device.descriptors().len()).filter(|_| self.by_hand) {
            work.serve_descriptor(index);
        }
    }
}

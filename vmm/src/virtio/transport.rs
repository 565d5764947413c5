//! A device between stopped, while the driver sets it up, and running on its thread.

use std::any::Any;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use virtio_bindings::virtio_config as conf;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{Interrupt, Virtqueue};
use super::registers::Registers;
use super::{Driver, VirtioDevice};
use crate::memory::GuestRam;
use crate::worker::{StopFlag, ThreadKind, Work, Worker, borrow};

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
    interrupt: Arc<Interrupt>,
    /// Feature bits that the driver has accepted.
    pub(super) driver_features: u64,
    /// The driver has accepted features past the 64th, of which none exists.
    pub(super) accepts_unknown: bool,
    /// Queues as the driver sets them up. Fixed from DRIVER_OK to the reset.
    pub(super) queues: Vec<Queue>,
    kicks: Vec<Arc<EventFd>>,
    ram: GuestRam,
    /// The device's name.
    name: String,
    state: DeviceState,
    /// The device has no thread: it works only in [`serve`](Self::serve), so that a fuzzer's findings can be repeated,
    /// and miri can run it.
    #[cfg(any(test, fuzzing))]
    pub(super) by_hand: bool,
}

enum DeviceState {
    Stopped(Box<dyn VirtioDevice>),
    Running(Worker<DeviceWork>),
    /// Stopped with its queues, to run again.
    Paused(DeviceWork),
    /// Its thread panicked or could not start.
    Dead,
}

impl Transport {
    /// `device`, stopped, with its rings in `ram`; its driver reads the page with the index `page` of `pages`. It
    /// raises `interrupt`, an irqfd.
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
            ram,
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

    fn features_are_ok(&self) -> bool {
        !self.accepts_unknown
            && self.driver_features & !self.features == 0
            && self.driver_features & 1 << conf::VIRTIO_F_VERSION_1 != 0
    }

    /// The driver is ready: the device moves to its thread.
    fn activate(&mut self) -> Result<()> {
        let mut queues = Vec::new();
        for (queue, kick) in self.queues.iter().zip(&self.kicks) {
            let mut queue = Queue::try_from(queue.state())?;
            ensure!(!queue.ready() || queue.is_valid(&self.ram), "a queue that is not in RAM");
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
        let ready = self.queues.iter().map(QueueT::ready).collect();
        let work = DeviceWork {
            device,
            queues,
            ready,
            kicks: self.kicks.clone(),
            interrupt: self.interrupt.clone(),
            cpu_time: Duration::ZERO,
            resume_at: None,
        };
        self.state = DeviceState::Paused(work);
        self.resume()
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
            work.ready[index] = false;
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
            DeviceState::Running(worker) => {
                worker.stop().map_or(DeviceState::Dead, DeviceState::Paused)
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
    }
}

/// Stops serving the device until the driver resets it.
fn needs_reset(interrupt: &Interrupt, error: &anyhow::Error) {
    // Once: a guest that repeats the error must not fill the host's logs.
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| log::warn!("virtio: the guest's driver is broken, as in {error:#}"));
    log::debug!("virtio: device needs reset: {error:#}");
    interrupt.registers.set_bits(VIRTIO_MMIO_STATUS, conf::VIRTIO_CONFIG_S_NEEDS_RESET);
    interrupt.config_changed();
}

/// A running device: waits for kicks and serves queues.
struct DeviceWork {
    device: Box<dyn VirtioDevice>,
    queues: Vec<Virtqueue>,
    /// The queues that the driver has enabled.
    ready: Vec<bool>,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Arc<Interrupt>,
    /// Processor time of earlier threads.
    cpu_time: Duration,
    /// When to serve all queues again.
    resume_at: Option<Instant>,
}

impl Work for DeviceWork {
    fn name(&self) -> String {
        self.device.name().chars().take(15).collect()
    }

    fn kind(&self) -> ThreadKind {
        self.device.thread_kind()
    }

    fn cpu_time(&mut self) -> Option<&mut Duration> {
        Some(&mut self.cpu_time)
    }

    fn run(&mut self, stop: &StopFlag) {
        let mut last = 0;
        while !stop.is_set() {
            if self.resume_at.is_some_and(|at| at <= Instant::now()) {
                self.kick_all();
            }
            let until = self.resume_at;
            match self.wait(stop, last, until) {
                Some(Ready::Queue(index)) => {
                    last = index;
                    self.serve(index);
                }
                Some(Ready::Descriptor(index)) => self.serve_descriptor(index),
                None => {}
            }
        }
    }
}

impl DeviceWork {
    /// Serves queue `index`, which was kicked.
    fn serve(&mut self, index: usize) {
        if self.is_broken() || !self.ready[index] {
            return;
        }
        let served = self.device.handle(index, &mut self.queues);
        self.conclude(served, "queue", index);
    }

    /// Serves descriptor `index`, which is ready.
    fn serve_descriptor(&mut self, index: usize) {
        let served = self.device.descriptor_ready(index, &mut self.queues);
        self.conclude(served, "descriptor", index);
    }

    fn is_broken(&self) -> bool {
        let status = self.interrupt.registers.get(VIRTIO_MMIO_STATUS);
        status & conf::VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Stops serving the device if it could not be `served`; updates when to serve it again.
    fn conclude(&mut self, served: Result<()>, what: &str, index: usize) {
        if let Err(error) = served {
            let error = error.context(format!("{}, {what} {index}", self.device.name()));
            needs_reset(&self.interrupt, &error);
        }
        // The earliest time of any queue counts, and after it the next.
        self.resume_at = [self.resume_at, self.device.resume_at()].into_iter().flatten().min();
    }

    /// Kicks all queues.
    fn kick_all(&mut self) {
        self.resume_at = None;
        for kick in &self.kicks {
            // Cannot fail: each counter is cleared before its queue is served.
            let _ = kick.write(1);
        }
    }

    /// Waits for a kick, and takes it, or for a descriptor; `None` to check `stop`, and at `until`.
    fn wait(&self, stop: &StopFlag, last: usize, until: Option<Instant>) -> Option<Ready> {
        // The `last` queue comes last, or a queue that is always busy would starve the others.
        let mut order = (last + 1..self.kicks.len()).chain(0..=last);
        if let Some(index) = order.find(|&index| self.kicks[index].read().is_ok()) {
            return Some(Ready::Queue(index));
        }
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        let kicks = self.kicks.iter().map(|kick| borrow(kick));
        fds.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        let others = fds.len();
        if !self.is_broken() {
            let descriptors = self.device.descriptors().into_iter();
            fds.extend(descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is EINTR, by which a stop arrives.
        poll(&mut fds, timeout.as_ref()).ok()?;
        let ready = fds[others..].iter().position(|fd| !fd.revents().is_empty());
        ready.map(Ready::Descriptor)
    }
}

/// The next thing to serve.
enum Ready {
    /// This queue was kicked.
    Queue(usize),
    /// The descriptor with this index is ready.
    Descriptor(usize),
}

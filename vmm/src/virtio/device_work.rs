//! A device's thread: it waits for kicks and descriptors, and has the device serve them.

use std::os::fd::AsFd;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_config as conf;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::queue::{Interrupt, Virtqueue};
use crate::worker::{StopFlag, ThreadKind, Work, borrow};

/// How long a stop waits for requests that are in flight. Tests have one that is never answered.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

/// A running device: waits for kicks and descriptors, and serves queues.
pub(super) struct DeviceWork {
    pub device: Box<dyn VirtioDevice>,
    pub queues: Vec<Virtqueue>,
    pub kicks: Vec<Arc<EventFd>>,
    pub interrupt: Arc<Interrupt>,
    /// Processor time of earlier threads.
    pub cpu_time: Duration,
    /// When to serve all queues again.
    pub resume_at: Option<Instant>,
    /// Requests are in flight that nobody waits for any more.
    pub stuck: bool,
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
        self.device.start(&mut self.queues);
        while !stop.is_set() {
            if self.resume_at.is_some_and(|at| at <= Instant::now()) {
                self.kick_all();
            }
            let until = self.resume_at;
            let Some(ready) = self.wait(stop, last, until) else { continue };
            last = ready;
            match ready.checked_sub(self.kicks.len()) {
                None => self.serve(ready),
                Some(descriptor) => self.serve_descriptor(descriptor),
            }
        }
        self.settle();
    }
}

impl DeviceWork {
    /// Serves queue `index`, which was kicked.
    pub fn serve(&mut self, index: usize) {
        if self.is_broken() || !self.queues[index].is_ready() {
            return;
        }
        let served = self.device.handle(index, &mut self.queues);
        self.conclude(served, "queue", index);
    }

    /// Serves descriptor `index`, which is ready.
    pub fn serve_descriptor(&mut self, index: usize) {
        let served = self.device.descriptor_ready(index, &mut self.queues);
        self.conclude(served, "descriptor", index);
    }

    /// Completes what is in flight, so that nothing goes on when the thread has stopped.
    pub fn settle(&mut self) {
        self.stuck = !self.device.settle(&mut self.queues, Instant::now() + PATIENCE);
        if self.stuck {
            let (name, seconds) = (self.device.name(), PATIENCE.as_secs());
            log::error!(
                "{name}: the host has not answered for {seconds} s: it is lost to the guest until tinyvmm ends"
            );
        }
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

    /// Waits for a kick, and takes it, or for a descriptor: its index after those of all queues. `None` to look at
    /// `stop`, and when it is `until`.
    fn wait(&self, stop: &StopFlag, last: usize, until: Option<Instant>) -> Option<usize> {
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        // Without events, an eventfd is never ready.
        let events = if self.device.takes_kicks() { PollFlags::IN } else { PollFlags::empty() };
        let kicks = self.kicks.iter().map(|kick| borrow(kick));
        fds.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, events)));
        if !self.is_broken() {
            let descriptors = self.device.descriptors().into_iter();
            fds.extend(descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is EINTR, by which a stop arrives.
        poll(&mut fds, timeout.as_ref()).ok()?;
        let ready: Vec<_> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        // The `last` one comes last, or one that is always ready would starve the others.
        let mut order = (last + 1..ready.len()).chain(0..=last);
        let index = order.find(|&index| ready.get(index) == Some(&true))?;
        let taken = self.kicks.get(index).is_none_or(|kick| kick.read().is_ok());
        taken.then_some(index)
    }
}

/// Gives up on the device until the driver resets it.
pub(super) fn needs_reset(interrupt: &Interrupt, error: &anyhow::Error) {
    // Once: a guest that repeats the error must not fill the host's logs.
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| log::warn!("virtio: the guest's driver is broken, as in {error:#}"));
    log::debug!("virtio: device needs reset: {error:#}");
    interrupt.registers.set_bits(VIRTIO_MMIO_STATUS, conf::VIRTIO_CONFIG_S_NEEDS_RESET);
    interrupt.config_changed();
}

//! Devices that other processes serve: file systems (virtio 1.2, 5.11) and disks (5.2).
//!
//! The back end follows the queues by itself, and sees the driver's kicks. The device's thread passes on its interrupts,
//! for the driver reads their cause on the device's page, and notices its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_MQ};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_FS};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{Interrupt, Virtqueue};
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::backend::{Backend, Ring};
use crate::config::{MAX_TAG, VhostUserKind};
use crate::worker::{ThreadKind, borrow};

/// The maximum size of a queue.
const QUEUE_SIZE: u16 = 128;
/// Bytes of a disk's configuration space up to what is zoned (virtio 1.2, 5.2.4).
const BLOCK_CONFIG: u32 = 60;
/// Feature bits whose meaning depends on the device (virtio 1.2, 6).
const OF_DEVICE: u64 = (1 << 24) - 1;

/// The device.
pub struct VhostUser {
    backend: Backend,
    kind: VhostUserKind,
    name: String,
    call: EventFd,
    driver: Option<Accepted>,
    /// Which queues the back end serves.
    served: Vec<bool>,
}

/// The properties of the driver.
struct Accepted {
    features: u64,
    interrupt: Arc<Interrupt>,
    kicks: Vec<Arc<EventFd>>,
}

impl VhostUserKind {
    /// How many queues the device has, and how many bytes of configuration space its back end has.
    pub fn shape(&self) -> (usize, u32) {
        match self {
            Self::Block => (1, BLOCK_CONFIG),
            // For requests, and for those that must not wait behind them.
            Self::Files(_) => (2, 0),
        }
    }
}

impl VhostUser {
    /// A device of this kind at `backend`. `index` counts them.
    pub fn new(backend: Backend, kind: VhostUserKind, index: usize) -> Result<Self> {
        let name = match &kind {
            VhostUserKind::Block => format!("vhost-blk{index}"),
            VhostUserKind::Files(_) => format!("share{index}"),
        };
        let served = vec![false; kind.shape().0];
        Ok(Self { backend, kind, name, call: EventFd::new(EFD_NONBLOCK)?, driver: None, served })
    }

    fn lose(&self, error: impl std::fmt::Display) {
        if !self.backend.is_lost() {
            let name = &self.name;
            log::error!("{name}: its process {error}: it is lost to the guest until tinyvmm ends");
            self.backend.lose();
        }
    }

    fn start_rings(&mut self, queues: &[Virtqueue]) -> Result<()> {
        let driver = self.driver.as_ref().context("there is no driver")?;
        let ready = queues.iter().enumerate().filter(|(_, queue)| queue.is_ready());
        let ring = |(index, queue): (usize, &Virtqueue)| {
            let (size, next, places) = queue.layout();
            let (kick, call) = (&*driver.kicks[index], &self.call);
            Ring { index, size, next, places, kick, call }
        };
        let rings: Vec<_> = ready.map(ring).collect();
        let Some(first) = queues.first() else { return Ok(()) };
        self.backend.start(first.ram(), driver.features, &rings)?;
        for ring in &rings {
            self.served[ring.index] = true;
        }
        Ok(())
    }
}

impl VirtioDevice for VhostUser {
    fn id(&self) -> u32 {
        match self.kind {
            VhostUserKind::Block => VIRTIO_ID_BLOCK,
            VhostUserKind::Files(_) => VIRTIO_ID_FS,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.served.len()]
    }

    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::VhostUser
    }

    fn features(&self) -> u64 {
        let refused = match self.kind {
            // It has one queue, and its configuration is never written.
            VhostUserKind::Block => 1 << VIRTIO_BLK_F_MQ | 1 << VIRTIO_BLK_F_CONFIG_WCE,
            VhostUserKind::Files(_) => OF_DEVICE,
        };
        self.backend.features() & OF_DEVICE & !refused
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(match &self.kind {
            VhostUserKind::Block => self.backend.config().to_vec(),
            VhostUserKind::Files(tag) => {
                let mut config = tag.clone().into_bytes();
                config.resize(MAX_TAG, 0);
                let request_queues = 1u32;
                config.extend(request_queues.to_le_bytes());
                config
            }
        })
    }

    fn activate(&mut self, driver: &Driver) {
        let (features, interrupt) = (driver.features, driver.interrupt.clone());
        self.driver = Some(Accepted { features, interrupt, kicks: driver.kicks.to_vec() });
    }

    fn reset(&mut self) {
        self.driver = None;
    }

    fn takes_kicks(&self) -> bool {
        false
    }

    fn start(&mut self, queues: &mut [Virtqueue]) {
        if !self.backend.is_lost()
            && let Err(error) = self.start_rings(queues)
        {
            self.lose(format_args!("cannot serve it ({error:#})"));
        }
    }

    fn handle(&mut self, _index: usize, _queues: &mut [Virtqueue]) -> Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        if self.backend.is_lost() {
            return Vec::new();
        }
        // Nothing comes on the socket but its end.
        vec![(borrow(&self.call), PollFlags::IN), (self.backend.as_fd(), PollFlags::IN)]
    }

    fn descriptor_ready(&mut self, index: usize, _queues: &mut [Virtqueue]) -> Result<()> {
        match (index, &self.driver) {
            (0, Some(driver)) if self.call.read().is_ok() => driver.interrupt.used(),
            (0, _) => {}
            _ => self.lose("has ended"),
        }
        Ok(())
    }

    fn settle(&mut self, queues: &mut [Virtqueue], until: Instant) -> bool {
        for (index, queue) in queues.iter_mut().enumerate() {
            if !std::mem::take(&mut self.served[index]) || self.backend.is_lost() {
                continue;
            }
            match self.backend.stop(index, until) {
                Ok(next) => queue.set_next(next),
                Err(error) => self.lose(format_args!("does not stop ({error})")),
            }
        }
        // What it has completed last.
        let _ = self.descriptor_ready(0, queues);
        true
    }
}

//! The state of a virtio device, read and written back while no thread serves it.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config as conf;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS,
};
use virtio_queue::{Queue, QueueT};

use super::balloon_handle::BalloonSaved;
use super::mem::MemSaved;
use super::mmio::Mmio;
use super::transport::{DeviceState, Transport};

/// The state of a device and its registers.
#[derive(Debug, Serialize, Deserialize)]
pub struct VirtioState {
    id: u32,
    features: u64,
    driver_features: u64,
    accepts_unknown: bool,
    status: u32,
    interrupts: u32,
    generation: u32,
    /// Which words of features, and which queue, the driver has selected.
    selected: [u32; 3],
    queues: Vec<QueueState>,
    device: DeviceSaved,
}

/// What a device has beyond its queues and registers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceSaved {
    /// Nothing.
    Nothing,
    /// A disk has its size, in bytes, which its driver has read.
    Block(u64),
    /// The state of the balloon.
    Balloon(BalloonSaved),
    /// The state of the device that plugs memory.
    Mem(MemSaved),
}

#[derive(Debug, Serialize, Deserialize)]
struct QueueState {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl QueueState {
    fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// A queue of this state, of at most `max_size` entries. Whether it is in RAM is checked when it is used.
    fn to_queue(&self, max_size: u16) -> Result<Queue> {
        let state = virtio_queue::QueueState {
            max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Ok(Queue::try_from(state)?)
    }
}

impl VirtioState {
    /// Whether it is a device with this number, and its driver is ready.
    pub fn has_driver(&self, id: u32) -> bool {
        self.id == id && self.status & conf::VIRTIO_CONFIG_S_DRIVER_OK != 0
    }
}

impl Mmio {
    /// Reads the state. An error: the device has lost its thread.
    pub fn save(&self) -> Result<VirtioState> {
        let Self { transport, .. } = self;
        let (device, queues): (_, Vec<_>) = match &transport.state {
            DeviceState::Stopped(device) => {
                (device, transport.queues.iter().map(QueueState::of).collect())
            }
            DeviceState::Paused(work) => (
                &work.device,
                work.queues.iter().map(|queue| QueueState::of(queue.queue())).collect(),
            ),
            DeviceState::Running(_) | DeviceState::Dead => bail!("{} is lost", transport.name),
        };
        let register = |register| transport.registers().get(register);
        Ok(VirtioState {
            id: transport.id,
            features: transport.features,
            driver_features: transport.driver_features,
            accepts_unknown: transport.accepts_unknown,
            status: transport.status(),
            interrupts: register(VIRTIO_MMIO_INTERRUPT_STATUS),
            generation: register(VIRTIO_MMIO_CONFIG_GENERATION),
            selected: self.selected(),
            queues,
            device: device.save(),
        })
    }

    /// Sets the state of a new device.
    pub fn restore(&mut self, state: &VirtioState) -> Result<()> {
        self.transport.restore(state)?;
        self.select(state.selected);
        Ok(())
    }
}

impl Transport {
    fn restore(&mut self, state: &VirtioState) -> Result<()> {
        let is_same = (state.id, state.features, state.queues.len())
            == (self.id, self.features, self.queues.len());
        ensure!(
            is_same,
            "{}: the snapshot has another device there, or one with other options",
            self.name
        );
        let DeviceState::Stopped(device) = &mut self.state else {
            bail!("{} is no new device", self.name)
        };
        device.restore(&state.device)?;
        (self.driver_features, self.accepts_unknown) =
            (state.driver_features, state.accepts_unknown);
        for (queue, state) in self.queues.iter_mut().zip(&state.queues) {
            *queue = state.to_queue(queue.max_size())?;
        }
        let registers = self.registers();
        registers.set(VIRTIO_MMIO_STATUS, state.status);
        registers.set(VIRTIO_MMIO_INTERRUPT_STATUS, state.interrupts);
        registers.set(VIRTIO_MMIO_CONFIG_GENERATION, state.generation);
        registers.show_config();
        if state.status & conf::VIRTIO_CONFIG_S_DRIVER_OK == 0 {
            return Ok(());
        }
        ensure!(self.features_are_ok(), "{}: features that are not offered", self.name);
        self.connect()
    }

    /// Raises the interrupt that a driver may not have seen: KVM raises one a little after its event was written.
    pub fn raise_again(&self) {
        self.interrupt.raise_again();
    }
}

//! The virtio-mmio register map, version 2 (virtio 1.2, 4.2.2).

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK};
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::QueueT;

use super::transport::Transport;
use crate::bus::BusDevice;

/// Offset of QueueNotify, whose writes KVM signals to the kicks.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"TVMM");

/// The registers of a device.
pub struct Mmio {
    /// The device.
    pub transport: Transport,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl Mmio {
    /// Registers for `transport`.
    pub fn new(transport: Transport) -> Self {
        let registers = transport.registers();
        registers.set(reg::VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        registers.set(reg::VIRTIO_MMIO_VERSION, 2);
        registers.set(reg::VIRTIO_MMIO_DEVICE_ID, transport.id);
        registers.set(reg::VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // No shared memory regions: their lengths and bases are all ones (4.2.2).
        for register in (reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
            registers.set(register, u32::MAX);
        }
        let mmio = Self { transport, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 };
        mmio.show();
        mmio
    }

    /// The driver's selectors.
    pub(super) fn selected(&self) -> [u32; 3] {
        [self.device_features_sel, self.driver_features_sel, self.queue_sel]
    }

    /// Sets the driver's selectors.
    pub(super) fn select(&mut self, selectors: [u32; 3]) {
        [self.device_features_sel, self.driver_features_sel, self.queue_sel] = selectors;
        self.show();
    }

    /// Updates the registers that depend on the driver's selectors.
    fn show(&self) {
        let queue = self.transport.queues.get(self.queue_sel as usize);
        let features = match self.device_features_sel {
            0 => self.transport.features as u32,
            1 => (self.transport.features >> 32) as u32,
            _ => 0,
        };
        let registers = self.transport.registers();
        registers.set(reg::VIRTIO_MMIO_DEVICE_FEATURES, features);
        registers
            .set(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max_size().into()));
        registers.set(reg::VIRTIO_MMIO_QUEUE_READY, queue.map_or(0, |queue| queue.ready().into()));
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset as u32 {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.transport.registers().clear_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, value);
            }
            reg::VIRTIO_MMIO_STATUS => {
                self.transport.set_status(value);
                // The configuration may have changed while there was no driver.
                self.transport.registers().show_config();
            }
            // KVM handles these writes itself; those for unknown queues come here.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.transport.kicks().get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            _ => self.write_queue_register(offset as u32, value),
        }
    }

    /// Accepts features until FEATURES_OK.
    fn accept_features(&mut self, value: u32) {
        let status = self.transport.status();
        if !self.transport.in_setup(VIRTIO_CONFIG_S_DRIVER)
            || status & VIRTIO_CONFIG_S_FEATURES_OK != 0
        {
            return;
        }
        let features = &mut self.transport.driver_features;
        match self.driver_features_sel {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            // No feature of these words is offered.
            _ => self.transport.accepts_unknown |= value != 0,
        }
    }

    /// Only between FEATURES_OK and DRIVER_OK, and only while the queue is not ready; but a driver may take a queue
    /// back at any time.
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if (offset, value) == (reg::VIRTIO_MMIO_QUEUE_READY, 0) {
            return self.transport.stop_queue(self.queue_sel as usize);
        }
        if !self.transport.in_setup(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let Some(queue) = self.transport.queues.get_mut(self.queue_sel as usize) else { return };
        if queue.ready() {
            return;
        }
        match offset {
            // Values other than zero and one are undefined (4.2.2): they change nothing.
            reg::VIRTIO_MMIO_QUEUE_READY if value == 1 => queue.set_ready(true),
            // An invalid size (zero, no power of two, above the maximum) changes nothing.
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

impl BusDevice for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.registers().read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(bytes), true) = (data.try_into(), offset.is_multiple_of(4)) else { return };
        let value = u32::from_le_bytes(bytes);
        match offset.checked_sub(CONFIG) {
            Some(at) => self.transport.registers().write_config(at as usize, value),
            None => self.write_register(offset, value),
        }
        self.show();
    }
}

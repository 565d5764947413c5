//! The registers and the configuration space that a driver reads, on a page in guest memory.
//!
//! A guest's reads do not exit: all readable registers are on the page at any time. Each thread that changes one writes
//! it there.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::ConfigSpace;
use crate::layout::VIRTIO_MMIO_SIZE;
use crate::sync::lock;

const SIZE: usize = VIRTIO_MMIO_SIZE as usize;
/// Words of the configuration space that fit into the page.
const CONFIG_WORDS: usize = (SIZE - reg::VIRTIO_MMIO_CONFIG as usize) / 4;

/// The page of a device. Registers are named by their offsets (virtio 1.2, 4.2.2).
pub struct Registers {
    /// The pages of all devices.
    pages: Arc<MmapRegion>,
    start: usize,
    config: Mutex<Arc<dyn ConfigSpace>>,
}

impl Registers {
    /// The registers of a device with `config`, on the page with this index.
    pub fn new(
        pages: Arc<MmapRegion>,
        index: usize,
        config: Arc<dyn ConfigSpace>,
    ) -> Result<Arc<Self>> {
        let start = index * SIZE;
        ensure!(pages.size() >= start + SIZE, "no page for the registers of device {index}");
        let registers = Self { pages, start, config: Mutex::new(config) };
        registers.show_config();
        Ok(Arc::new(registers))
    }

    fn word(&self, register: u32) -> Option<&AtomicU32> {
        // Always there: a register is a word of the page.
        self.pages.get_atomic_ref(self.start + register as usize).ok()
    }

    /// The value of a register.
    pub fn get(&self, register: u32) -> u32 {
        self.word(register).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Sets a register.
    pub fn set(&self, register: u32, value: u32) {
        if let Some(word) = self.word(register) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Sets bits atomically.
    pub fn set_bits(&self, register: u32, bits: u32) {
        if let Some(word) = self.word(register) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }

    /// Clears bits atomically.
    pub fn clear_bits(&self, register: u32, bits: u32) {
        if let Some(word) = self.word(register) {
            word.fetch_and(!bits, Ordering::SeqCst);
        }
    }

    /// A read by an exit, or by a test.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        // Cannot fail: an access does not leave the page.
        let _ = self.pages.as_volatile_slice().read_slice(data, self.start + offset as usize);
    }

    /// The driver writes a word of the configuration space at `offset`.
    pub fn write_config(&self, offset: usize, value: u32) {
        lock(&self.config).write(offset, value);
        self.show_config();
    }

    /// Replaces the configuration space. Returns whether its contents have changed.
    pub fn set_config(&self, config: Arc<dyn ConfigSpace>) -> bool {
        *lock(&self.config) = config;
        self.show_config()
    }

    /// Copies the configuration space to the page; returns whether it has changed.
    ///
    /// A driver that reads meanwhile finds another generation after than before, and reads again (virtio 1.2, 2.5.3.1);
    /// if all its reads are between two words, the interrupt that follows a change has it read again.
    pub fn show_config(&self) -> bool {
        let config = lock(&self.config);
        let mut bytes = config.read();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let places = (reg::VIRTIO_MMIO_CONFIG..).step_by(4).take(CONFIG_WORDS);
        let new: Vec<_> =
            places.zip(words).filter(|(place, word)| self.get(*place) != *word).collect();
        if new.is_empty() {
            return false;
        }
        let next = || {
            let generation = self.get(reg::VIRTIO_MMIO_CONFIG_GENERATION);
            self.set(reg::VIRTIO_MMIO_CONFIG_GENERATION, generation.wrapping_add(1));
        };
        next();
        new.into_iter().for_each(|(place, word)| self.set(place, word));
        next();
        true
    }
}

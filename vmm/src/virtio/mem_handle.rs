//! The state that virtio-mem shares with its owner, on another thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Result, ensure};

use super::ConfigSpace;
use super::queue::Interrupt;
use crate::layout;
use crate::memory::Blocks;
use crate::sync::lock;

/// The configuration space (virtio 1.2, 5.15.4), and the driver to interrupt when it changes.
pub(super) struct MemState {
    blocks: Arc<Blocks>,
    /// Memory that the guest is to plug, in bytes.
    requested: AtomicU64,
    /// The driver, while it is ready. Keeps the registers of the configuration space; they keep this state.
    driver: Mutex<Weak<Interrupt>>,
}

impl MemState {
    pub(super) fn new(blocks: Arc<Blocks>) -> Self {
        Self { blocks, requested: AtomicU64::new(0), driver: Mutex::default() }
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    /// Sets the driver, or that there is none.
    pub(super) fn connect(&self, driver: Weak<Interrupt>) {
        *lock(&self.driver) = driver;
    }

    /// Updates the registers after blocks were plugged or unplugged. The driver gets no interrupt: it has requested
    /// that.
    pub(super) fn show(&self) {
        if let Some(driver) = lock(&self.driver).upgrade() {
            driver.registers.show_config();
        }
    }

    fn status(&self) -> MemStatus {
        let block = self.blocks.size();
        MemStatus {
            start: self.blocks.start(),
            block,
            total: self.blocks.count() as u64 * block,
            requested: self.requested(),
            plugged: self.blocks.plugged_bytes(),
        }
    }
}

impl ConfigSpace for MemState {
    fn read(&self) -> Vec<u8> {
        let MemStatus { start, block, total, plugged, requested } = self.status();
        // The second field is for a NUMA node, which there is not. All of the region is usable.
        let fields = [block, 0, start, total, total, plugged, requested];
        fields.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// The pluggable and the plugged memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemStatus {
    /// Guest address of the first block.
    pub start: u64,
    /// Size of a block, in bytes.
    pub block: u64,
    /// Pluggable memory, in bytes.
    pub total: u64,
    /// Requested memory, in bytes.
    pub requested: u64,
    /// Plugged memory, in bytes.
    pub plugged: u64,
}

/// Requests a machine's guest to plug or unplug memory, whether it runs or not. From any thread; no call waits for the
/// guest.
#[derive(Clone)]
pub struct MemHandle(Arc<MemState>);

impl MemHandle {
    pub(super) fn new(state: Arc<MemState>) -> Self {
        Self(state)
    }

    /// Sets the total that the guest is to have plugged, in bytes. An error if there is less, or it is not whole
    /// blocks.
    pub fn request(&self, bytes: u64) -> Result<()> {
        let MemStatus { block, total, .. } = self.0.status();
        let mib = |bytes| bytes / layout::MIB;
        ensure!(
            bytes <= total,
            "{} MiB: {} can be plugged, ask for no more",
            mib(bytes),
            mib(total)
        );
        ensure!(
            bytes.is_multiple_of(block),
            "{} MiB: memory comes in blocks of {} MiB, ask for whole ones",
            mib(bytes),
            mib(block)
        );
        self.0.requested.store(bytes, Ordering::SeqCst);
        if let Some(driver) = lock(&self.0.driver).upgrade() {
            driver.config_changed();
        }
        Ok(())
    }

    /// The pluggable, requested and plugged memory.
    pub fn status(&self) -> MemStatus {
        self.0.status()
    }
}

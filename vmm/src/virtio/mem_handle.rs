//! What virtio-mem and its owner, on another thread, have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::{Result, ensure};

use super::ConfigSpace;
use super::queue::Interrupt;
use crate::layout;
use crate::memory::Blocks;
use crate::sync::lock;

/// The configuration space (virtio 1.2, 5.15.4), and how a driver that is ready is told that it changed.
pub(super) struct State {
    blocks: Arc<Blocks>,
    /// Bytes that the guest is to plug.
    requested: AtomicU64,
    /// Its registers show this state: it is theirs to keep. Nobody's while no driver is ready.
    driver: Mutex<Weak<Interrupt>>,
}

impl State {
    pub(super) fn new(blocks: Arc<Blocks>) -> Self {
        Self { blocks, requested: AtomicU64::new(0), driver: Mutex::default() }
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    /// A driver is ready, or has gone.
    pub(super) fn connect(&self, driver: Weak<Interrupt>) {
        *lock(&self.driver) = driver;
    }

    /// Blocks were plugged or unplugged: the driver knows, but can read it, too.
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

impl ConfigSpace for State {
    fn read(&self) -> Vec<u8> {
        let MemStatus { start, block, total, plugged, requested } = self.status();
        // The second is for a node, which there is none of. All of the region can be used.
        let fields = [block, 0, start, total, total, plugged, requested];
        fields.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// How much memory can be plugged, and is: in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemStatus {
    /// Guest address of the first block.
    pub start: u64,
    /// Size of a block.
    pub block: u64,
    /// All that can be plugged.
    pub total: u64,
    /// What the guest was asked to plug.
    pub requested: u64,
    /// What it has plugged.
    pub plugged: u64,
}

/// Asks a machine's guest to plug more or less memory, while it runs or not. From any thread; nothing waits for the
/// guest.
#[derive(Clone)]
pub struct MemHandle(Arc<State>);

impl MemHandle {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    /// Asks the guest to have `bytes` plugged, all in all. An error if there are not as many, or no whole blocks.
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

    /// What there is, and how much of it is plugged.
    pub fn status(&self) -> MemStatus {
        self.0.status()
    }
}

//! What a disk and its owner, on another thread, have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::block::Block;
use super::mmio::Mmio;
use crate::sync::lock;

/// A number that one thread counts up and others look at.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Requests that a disk has carried out since the guest's last reset, and their data in bytes.
#[derive(Default)]
#[allow(missing_docs, reason = "what they count is their names")]
pub struct DiskCounts {
    pub reads: Count,
    pub read_bytes: Count,
    pub writes: Count,
    pub write_bytes: Count,
    pub flushes: Count,
    /// Also those that ask for zeroes.
    pub discards: Count,
    /// Requests that have failed.
    pub errors: Count,
    /// Times that a request had to wait for the disk's limit.
    pub throttled: Count,
}

type Change = Box<dyn FnOnce(&mut Block) -> Result<()> + Send>;

#[derive(Default)]
pub(super) struct Shared {
    pub counts: DiskCounts,
    /// A change on its way to the disk, and what came of it.
    change: Mutex<Option<Change>>,
    outcome: Mutex<Option<Result<()>>>,
}

impl Shared {
    /// Makes the change that is on its way, if there is one.
    pub(super) fn apply_to(&self, block: &mut Block) {
        if let Some(change) = lock(&self.change).take() {
            *lock(&self.outcome) = Some(change(block));
        }
    }
}

/// Changes a machine's disk while the machine is stopped, and counts what goes through it.
#[derive(Clone)]
pub struct DiskHandle(Arc<Shared>);

impl DiskHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// What has gone through the disk.
    pub fn counts(&self) -> &DiskCounts {
        &self.0.counts
    }

    /// Makes `change` to the disk behind `registers`, which is stopped. Its driver gets an interrupt if the disk's
    /// configuration space is another one then.
    pub fn change(
        &self,
        registers: &mut Mmio,
        change: impl FnOnce(&mut Block) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        *lock(&self.0.change) = Some(Box::new(change));
        registers.update();
        // Nobody took it: the device is lost.
        lock(&self.0.change).take();
        lock(&self.0.outcome).take().context("the disk's thread is lost")?
    }
}

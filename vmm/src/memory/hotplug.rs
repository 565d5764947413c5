//! RAM that is plugged and unplugged while the guest runs, block by block.
//!
//! All of it is memory of ours at all times, so that what we touch of it is there; what a guest sees of it is a
//! slot of KVM's for each block that is plugged. A CPU that touches another block finds nothing there, as anywhere
//! where no device answers; a device finds that its request leaves RAM.

use std::sync::Arc;

use anyhow::{Context, Result};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Blocks, GuestRam, RamRegion, give_back};

/// What makes a block visible to the guest's CPUs.
pub trait Slots: Send {
    /// Shows block `index` of `region`, or takes it away: no CPU touches it any more when this returns.
    fn set(&self, region: &RamRegion, index: usize, is_there: bool) -> Result<()>;
}

/// The part of a machine's RAM that comes in blocks.
pub struct Hotplug {
    ram: GuestRam,
    blocks: Arc<Blocks>,
    slots: Box<dyn Slots>,
}

impl Hotplug {
    /// That of `ram`, if it has one.
    pub fn new(ram: &GuestRam, slots: impl Slots + 'static) -> Option<Self> {
        let blocks = ram.iter().find_map(RamRegion::blocks)?.clone();
        Some(Self { ram: ram.clone(), blocks, slots: Box::new(slots) })
    }

    /// Where they are, and which of them are plugged.
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    fn region(&self) -> Result<&RamRegion> {
        self.ram.find_region(GuestAddress(self.blocks.start())).context("no RAM there")
    }

    /// Plugs block `index`, which is not. It reads as zero.
    pub fn plug(&self, index: usize) -> Result<()> {
        // A transfer that was under way when it was unplugged may have left something.
        self.discard(index)?;
        self.slots.set(self.region()?, index, true)?;
        self.blocks.set(index, true);
        Ok(())
    }

    /// Unplugs block `index`, which is plugged, and gives its memory back.
    pub fn unplug(&self, index: usize) -> Result<()> {
        self.blocks.set(index, false);
        if let Err(error) = self.slots.set(self.region()?, index, false) {
            self.blocks.set(index, true);
            return Err(error);
        }
        self.discard(index)
    }

    fn discard(&self, index: usize) -> Result<()> {
        give_back(&self.ram, &self.region()?.any_slice(self.blocks.bytes(index))?)
    }
}

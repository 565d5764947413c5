//! RAM that is plugged and unplugged while the guest runs, block by block.
//!
//! All of it is mapped in this process at all times, so that an access of a device never faults; the guest sees a KVM
//! memory slot for each plugged block. A CPU's access to another block is an exit to no device; a device's request to
//! one leaves RAM.

use std::sync::Arc;

use anyhow::{Context, Result};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Blocks, GuestRam, RamRegion, give_back};

/// Makes blocks visible to the guest's CPUs.
pub trait Slots: Send {
    /// Shows block `index` of `region` or hides it: no CPU accesses a hidden block after this returns.
    fn set(&self, region: &RamRegion, index: usize, is_there: bool) -> Result<()>;
}

/// The blocks of a machine's RAM.
pub struct Hotplug {
    ram: GuestRam,
    blocks: Arc<Blocks>,
    slots: Box<dyn Slots>,
}

impl Hotplug {
    /// The blocks of `ram`, if it has any.
    pub fn new(ram: &GuestRam, slots: impl Slots + 'static) -> Option<Self> {
        let blocks = ram.iter().find_map(RamRegion::blocks)?.clone();
        Some(Self { ram: ram.clone(), blocks, slots: Box::new(slots) })
    }

    /// The blocks' addresses, and which of them are plugged.
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    fn region(&self) -> Result<&RamRegion> {
        self.ram.find_region(GuestAddress(self.blocks.start())).context("no RAM there")
    }

    /// Plugs block `index`, which is unplugged. It reads as zero.
    pub fn plug(&self, index: usize) -> Result<()> {
        // A transfer that was in progress when the block was unplugged may have written to it.
        self.discard(index)?;
        self.show(index)
    }

    /// Plugs block `index`, which is unplugged, with what is in its memory.
    pub fn show(&self, index: usize) -> Result<()> {
        self.slots.set(self.region()?, index, true)?;
        self.blocks.set(index, true);
        Ok(())
    }

    /// Unplugs block `index`, which is plugged, and returns its memory to the host.
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

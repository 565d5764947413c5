//! virtio-balloon: memory that the guest gives back (virtio 1.2, 5.5).
//!
//! Pages that the guest reports as free go back to the host at once, and are zero when the guest uses them again. Pages
//! that the guest puts into the balloon to reach the target are unused until the target shrinks.

use std::sync::Arc;

use anyhow::{Result, bail};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::balloon_handle::{BalloonHandle, BalloonState};
use super::queue::{Chain, Virtqueue};
use super::saved::DeviceSaved;
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::config::BalloonFeatures;
use crate::memory::{self, GuestRam};

/// Feature bits (5.5.3).
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const FREE_PAGE_HINT: u64 = 1 << 3;
const PAGE_POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;
/// Entries of each queue. Linux needs 32 to report free pages.
const QUEUE_SIZE: u16 = 64;
/// The unit of the balloon, whatever the guest's pages are (5.5.6).
pub(super) const PAGE: u64 = 4096;
/// Most pages of one inflate request; Linux sends 256. Further pages are not given back.
const MAX_PAGES: usize = 4096;

/// The purpose of a queue.
#[derive(Clone, Copy)]
enum QueueRole {
    Inflate,
    Deflate,
    Statistics,
    Hinting,
    Reporting,
}

/// The device.
pub struct Balloon {
    state: Arc<BalloonState>,
    /// The roles of the queues, by index.
    roles: Vec<QueueRole>,
    offered: BalloonFeatures,
}

impl Balloon {
    /// A balloon of `target` bytes, for a machine with `ram` bytes of memory.
    pub fn new(ram: u64, target: u64, offered: BalloonFeatures) -> Result<Self> {
        let balloon = Self { state: Arc::new(BalloonState::new(ram)), roles: Vec::new(), offered };
        balloon.handle().set_target(target)?;
        Ok(balloon)
    }

    /// The owner's handle.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle::new(self.state.clone())
    }

    /// Gives the pages back whose numbers are in `chain`.
    fn inflate(ram: &GuestRam, chain: &mut Chain) {
        let mut numbers = vec![0; chain.readable.len().min(MAX_PAGES * 4)];
        chain.readable.copy_to(&mut numbers);
        let number = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
        let mut pages: Vec<u64> = numbers.as_chunks().0.iter().map(number).collect();
        pages.sort_unstable();
        // Neighbours together: huge pages stay whole until they are freed.
        for run in pages.chunk_by(|one, next| next - one <= 1) {
            let (first, last) = (run[0], run[run.len() - 1]);
            let len = (last - first + 1) * PAGE;
            // The run ends at the first page that is not RAM.
            let slices = ram.get_slices(GuestAddress(first * PAGE), len as usize);
            slices.map_while(Result::ok).for_each(|slice| give_back(ram, &slice));
        }
    }

    /// Gives pages back that the guest has said to be free, as it was asked to: it holds them until the end of a run.
    fn take_hint(&self, ram: &GuestRam, chain: &mut Chain) {
        if let Some(command) = chain.readable.read_array() {
            self.state.follow_hints(u32::from_le_bytes(command));
        }
        if self.state.is_hinted() {
            self.take_report(ram, chain);
        }
    }

    /// Gives reported free pages back, unless the guest relies on their contents (page poison).
    fn take_report(&self, ram: &GuestRam, chain: &Chain) {
        if self.state.pages_may_become_zero() {
            chain.writable.slices().for_each(|slice| give_back(ram, slice));
        }
    }
}

fn give_back(ram: &GuestRam, slice: &VolatileSlice) {
    if let Err(error) = memory::give_back(ram, slice) {
        log::debug!("balloon: {error:#}");
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &str {
        "balloon"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4 + usize::from(self.offered.hinting)]
    }

    fn features(&self) -> u64 {
        let BalloonFeatures { deflate_on_oom, statistics, reporting, hinting } = self.offered;
        let bit = |on, bit| if on { bit } else { 0 };
        PAGE_POISON
            | bit(statistics, STATS_VQ)
            | bit(deflate_on_oom, DEFLATE_ON_OOM)
            | bit(reporting, REPORTING)
            | bit(hinting, FREE_PAGE_HINT)
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.state.clone()
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Balloon(self.state.save())
    }

    fn restore(&mut self, state: &DeviceSaved) -> Result<()> {
        let DeviceSaved::Balloon(saved) = state else { bail!("no state of a balloon") };
        self.state.restore(saved);
        Ok(())
    }

    /// Queues that are not negotiated are left out, and later ones move up: Linux numbers them like that.
    fn activate(&mut self, driver: &Driver) {
        let mut roles = vec![QueueRole::Inflate, QueueRole::Deflate];
        let mut kick = None;
        if driver.features & STATS_VQ != 0 {
            kick = driver.kicks.get(roles.len()).cloned();
            roles.push(QueueRole::Statistics);
        }
        let hints = driver.features & FREE_PAGE_HINT != 0;
        if hints {
            roles.push(QueueRole::Hinting);
        }
        if driver.features & REPORTING != 0 {
            roles.push(QueueRole::Reporting);
        }
        self.roles = roles;
        let poisons = driver.features & PAGE_POISON != 0;
        self.state.connect(driver.interrupt, kick, poisons, hints);
    }

    fn reset(&mut self) {
        self.state.disconnect();
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        let queue = &mut queues[index];
        let ram = queue.ram().clone();
        match self.roles.get(index) {
            Some(QueueRole::Inflate) => queue.serve_each(|chain| {
                Self::inflate(&ram, chain);
                Ok(0)
            }),
            Some(QueueRole::Hinting) => queue.serve_each(|chain| {
                self.take_hint(&ram, chain);
                Ok(0)
            }),
            Some(QueueRole::Reporting) => queue.serve_each(|chain| {
                self.take_report(&ram, chain);
                Ok(0)
            }),
            // Deflated pages are populated when the guest touches them.
            Some(QueueRole::Deflate) => queue.serve_each(|_| Ok(0)),
            // The device keeps the driver's one buffer until newer statistics are requested (5.5.6.3).
            Some(QueueRole::Statistics) => queue.serve_some(|chain| {
                let answer = self.state.take_statistics(&mut chain.readable);
                Ok(answer.then_some(0).into())
            }),
            None => Ok(()),
        }
    }
}

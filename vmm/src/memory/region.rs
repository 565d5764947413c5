//! Guest RAM for devices and loaders: unplugged memory cannot be reached.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::guest_memory::Error as Unreachable;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionMmap, MemoryRegionAddress, MmapRegion, VolatileSlice,
};

use super::pages::PageSet;
use super::{PAGE, Reserved, saved};

/// All RAM of a guest. Clones share it. Only volatile accessors touch it.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// Consecutive RAM, either all of it plugged, or in blocks that are plugged and unplugged.
#[derive(Debug)]
pub struct RamRegion {
    mapping: GuestRegionMmap<()>,
    blocks: Option<Arc<Blocks>>,
    /// Pages that are given up would be a file's again, and not zero.
    of_file: AtomicBool,
    /// Another process provides its pages when they are touched.
    served: AtomicBool,
    /// Pages that were other than zero once, in a snapshot or in the file that the region was made of, and may be zero now
    /// without the host's showing that they were written.
    once_filled: PageSet,
    /// The file by which other processes have the pages, too.
    shared: Option<OwnedFd>,
    /// Dropped with the region.
    _reserved: Option<Reserved>,
}

impl RamRegion {
    /// RAM at guest address `start`. With a `block` size all of it is unplugged at first.
    pub(super) fn new(mapping: MmapRegion, start: u64, block: Option<u64>) -> Result<Self> {
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(start))
            .context("RAM does not fit the guest's address space")?;
        let blocks = block.map(|size| Arc::new(Blocks::new(start, mapping.len(), size)));
        let once_filled = PageSet::new(usize::try_from(mapping.len())? / PAGE);
        let (of_file, served) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { mapping, blocks, of_file, served, once_filled, shared: None, _reserved: None })
    }

    /// Adds the owner of the mapping.
    pub(super) fn that_owns(self, reserved: Reserved, shared: Option<OwnedFd>) -> Self {
        Self { _reserved: Some(reserved), shared, ..self }
    }

    /// The file whose first bytes the region is, if other processes can have it.
    pub fn shared(&self) -> Option<BorrowedFd<'_>> {
        self.shared.as_ref().map(AsFd::as_fd)
    }

    /// The address of the region's start in this process.
    pub fn host_address(&self) -> u64 {
        self.host() as u64
    }

    /// Gives `len` bytes at `pages` of the region, whole pages, back to the host: they read as zero from then on.
    pub(super) fn discard(&self, pages: *mut u8, len: usize) -> Result<()> {
        if self.is_of_file() {
            saved::renew(pages, len)?;
            self.was_filled((pages.addr() - self.host().addr()) as u64, len);
            return Ok(());
        }
        if let Some(file) = &self.shared {
            let (offset, len) = (pages.addr() - self.host().addr(), len as u64);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            return Ok(fallocate(file, flags, offset as u64, len)?);
        }
        if self.is_served() {
            // Who provides the pages learns that they are zero now.
            self.was_filled((pages.addr() - self.host().addr()) as u64, len);
        }
        super::forget(pages, len)
    }

    /// Whether another process provides its pages.
    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::SeqCst)
    }

    /// From now on one does.
    pub(super) fn set_served(&self) {
        self.served.store(true, Ordering::SeqCst);
    }

    /// Whether its pages are those of a file until they are written.
    pub(super) fn is_of_file(&self) -> bool {
        self.of_file.load(Ordering::SeqCst)
    }

    /// From now on they are.
    pub(super) fn set_of_file(&self) {
        self.of_file.store(true, Ordering::SeqCst);
    }

    /// The `len` bytes at `offset`, whole pages, are or were other than zero.
    pub(super) fn was_filled(&self, offset: u64, len: usize) {
        let first = (offset / PAGE as u64) as usize;
        self.once_filled.insert(first..first + len / PAGE);
    }

    /// Whether the page at `offset` was other than zero once, as far as that cannot be seen otherwise.
    pub(super) fn was_once_filled(&self, offset: u64) -> bool {
        self.once_filled.contains((offset / PAGE as u64) as usize)
    }

    /// The host address.
    pub(super) fn host(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// The blocks, if the region has any.
    pub fn blocks(&self) -> Option<&Arc<Blocks>> {
        self.blocks.as_ref()
    }

    /// The slice at `bytes`, plugged or not.
    pub(super) fn any_slice(&self, bytes: Range<u64>) -> Result<VolatileSlice<'_, ()>> {
        let (offset, len) = (MemoryRegionAddress(bytes.start), bytes.end - bytes.start);
        Ok(self.mapping.get_slice(offset, usize::try_from(len)?)?)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> u64 {
        self.mapping.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    fn bitmap(&self) {}

    /// The only way from a guest's address to memory. A slice may outlive the unplugging of its block: the memory stays
    /// mapped in this process, and the guest does not see it any more.
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        if self.blocks.as_ref().is_some_and(|blocks| !blocks.are_plugged(offset.0, count as u64)) {
            return Err(Unreachable::InvalidBackendAddress);
        }
        self.mapping.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// The plugged blocks of a region. One thread changes them, all may read them.
#[derive(Debug)]
pub struct Blocks {
    start: u64,
    size: u64,
    count: usize,
    bits: Box<[AtomicU64]>,
    plugged: AtomicUsize,
}

impl Blocks {
    fn new(start: u64, len: u64, size: u64) -> Self {
        let count = usize::try_from(len / size).unwrap_or(0);
        let bits = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { start, size, count, bits, plugged: AtomicUsize::new(0) }
    }

    /// Guest address of the first block.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Size of a block, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The number of blocks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Plugged memory, in bytes.
    pub fn plugged_bytes(&self) -> u64 {
        self.plugged.load(Ordering::SeqCst) as u64 * self.size
    }

    /// Whether block `index` is plugged.
    pub fn is_plugged(&self, index: usize) -> bool {
        let word = self.bits.get(index / 64);
        word.is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (index % 64) != 0)
    }

    /// The bytes of block `index` in its region.
    pub(super) fn bytes(&self, index: usize) -> Range<u64> {
        index as u64 * self.size..(index as u64 + 1) * self.size
    }

    /// Whether all of `len` bytes from `offset` are plugged.
    fn are_plugged(&self, offset: u64, len: u64) -> bool {
        let Some(last) = offset.checked_add(len.saturating_sub(1)) else { return false };
        (offset / self.size..=last / self.size).all(|index| self.is_plugged(index as usize))
    }

    pub(super) fn set(&self, index: usize, is_plugged: bool) {
        let Some(word) = self.bits.get(index / 64) else { return };
        let bit = 1 << (index % 64);
        let was_plugged = if is_plugged {
            word.fetch_or(bit, Ordering::SeqCst)
        } else {
            word.fetch_and(!bit, Ordering::SeqCst)
        } & bit
            != 0;
        match (was_plugged, is_plugged) {
            (false, true) => _ = self.plugged.fetch_add(1, Ordering::SeqCst),
            (true, false) => _ = self.plugged.fetch_sub(1, Ordering::SeqCst),
            _ => {}
        }
    }

    /// Unplugs all, as after power-on.
    pub(super) fn forget(&self) {
        (0..self.count).filter(|index| self.is_plugged(*index)).for_each(|i| self.set(i, false));
    }
}

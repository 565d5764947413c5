//! Guest RAM: host memory that is mapped into the guest, anonymous unless other processes serve a device.

pub mod buffers;
pub mod hotplug;
pub mod loadable;
mod pages;
mod region;
pub mod saved;
pub mod served;
mod slots;

use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{
    ByteValued, Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, MmapRegion,
    VolatileSlice,
};

pub use self::region::{Blocks, GuestRam, RamRegion};
pub use self::slots::{map_into_guest, serial_page, virtio_pages};
use crate::layout;

const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

/// Where the pages of guest RAM come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backing {
    /// The hugetlb pool, in which all are reserved at once.
    pub hugepages: bool,
    /// A file that other processes can map.
    pub shared: bool,
}

/// Reserves `size` bytes of guest RAM, aligned to 2 MiB; pages cost nothing until touched.
///
/// The RAM is unmapped with the last clone; a machine that resets uses it again.
pub fn allocate(size: u64, backing: Backing) -> Result<GuestRam> {
    let mut regions = Vec::new();
    for range in layout::ram_ranges(size) {
        let (mapping, reserved, shared) = reserve(range.end - range.start, backing)
            .with_context(|| format!("cannot reserve {} MiB of guest RAM", size >> 20))?;
        regions.push(RamRegion::new(mapping, range.start, None)?.that_owns(reserved, shared));
    }
    Ok(GuestRam::from_regions(regions)?)
}

/// Adds a region at `range` to `ram`, of blocks of `block` bytes, all of which are unplugged.
pub fn with_hotplug_region(
    ram: &GuestRam,
    range: Range<u64>,
    block: u64,
    shared: bool,
) -> Result<GuestRam> {
    let len = range.end - range.start;
    let (mapping, reserved, shared) = reserve(len, Backing { hugepages: false, shared })
        .with_context(|| format!("cannot reserve {} MiB for memory to be plugged", len >> 20))?;
    let region = RamRegion::new(mapping, range.start, Some(block))?.that_owns(reserved, shared);
    Ok(ram.insert_region(Arc::new(region))?)
}

/// The mapping of a region, which keeps this.
#[derive(Debug)]
struct Reserved {
    start: usize,
    len: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: only its region has used the mapping, and that is gone.
        if let Err(error) = unsafe { rustix::mm::munmap(start, self.len) } {
            log::error!("guest RAM: munmap: {error}");
        }
    }
}

/// RAM at these addresses, with these lengths, which is unmapped with the last clone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub fn of_ranges(ranges: &[(u64, u64)]) -> GuestRam {
    let region = |(start, len): &(u64, u64)| {
        RamRegion::new(MmapRegion::new(*len as usize).unwrap(), *start, None).unwrap()
    };
    GuestRam::from_regions(ranges.iter().map(region).collect()).unwrap()
}

/// The same, in files that other processes can map.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub fn shared_of_ranges(ranges: &[(u64, u64)]) -> GuestRam {
    let region = |(start, len): &(u64, u64)| {
        let backing = Backing { hugepages: false, shared: true };
        let (mapping, reserved, shared) = reserve(*len, backing).unwrap();
        RamRegion::new(mapping, *start, None).unwrap().that_owns(reserved, shared)
    };
    GuestRam::from_regions(ranges.iter().map(region).collect()).unwrap()
}

/// Adds a region of `len` bytes at `start` to `ram`, of blocks, which is unmapped in the same way.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, reason = "only tests have it, and fuzzing")]
pub fn with_hotplug_region_in(ram: &GuestRam, start: u64, len: u64, block: u64) -> GuestRam {
    let mapping = MmapRegion::new(len as usize).unwrap();
    let region = RamRegion::new(mapping, start, Some(block)).unwrap();
    ram.insert_region(Arc::new(region)).unwrap()
}

/// Maps `len` bytes at a multiple of 2 MiB; of a new file, which is returned, if others are to have them.
fn reserve(len: u64, backing: Backing) -> Result<(MmapRegion, Reserved, Option<OwnedFd>)> {
    let len = usize::try_from(len)?;
    let (flags, room) = if backing.hugepages && !backing.shared {
        // All pages are reserved now (Documentation/admin-guide/mm/hugetlbpage.rst), so that a pool that is too
        // small is an error here and not a SIGBUS later; each is zeroed when it is touched.
        (MapFlags::HUGETLB | MapFlags::HUGE_2MB, len.next_multiple_of(HUGE_PAGE))
    } else {
        // The slack allows for an aligned start; untouched, it costs nothing.
        (MapFlags::NORESERVE, len + HUGE_PAGE)
    };
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, flags | MapFlags::PRIVATE);
    // SAFETY: a new anonymous mapping at an address that the kernel chooses.
    let host = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), room, prot, flags) }?;
    let reserved = Reserved { start: host.expose_provenance(), len: room };
    let aligned = host.map_addr(|addr| addr.next_multiple_of(HUGE_PAGE));
    let shared = backing.shared.then(|| map_file(aligned, len, backing.hugepages)).transpose()?;
    let advices: &[_] =
        if backing.hugepages { &[] } else { &[Advice::LinuxHugepage, Advice::LinuxDontDump] };
    for &advice in advices {
        // SAFETY: advice on this function's fresh mapping, which changes no contents.
        if let Err(error) = unsafe { rustix::mm::madvise(aligned, len, advice) } {
            log::debug!("guest RAM: madvise {advice:?}: {error}");
        }
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = if backing.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    // SAFETY: `len` fresh bytes from `aligned` on are within the mapping, which nothing else refers to and which is
    // there for as long as the region keeps `reserved`.
    let region = unsafe { MmapRegion::build_raw(aligned.cast(), len, protection, flags) };
    Ok((region?, reserved, shared))
}

/// Maps a new file of `len` bytes over the fresh mapping at `start`.
fn map_file(start: *mut c_void, len: usize, hugepages: bool) -> Result<OwnedFd> {
    let huge =
        if hugepages { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
    let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC | huge)?;
    ftruncate(&file, len.next_multiple_of(if hugepages { HUGE_PAGE } else { PAGE }) as u64)?;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
    // SAFETY: it replaces a part of the caller's mapping that nothing refers to yet.
    unsafe { rustix::mm::mmap(start, len, prot, flags, &file, 0) }?;
    Ok(file)
}

/// Replaces the `T` at each of `offsets` in `slice`; an offset outside is an error. For hundreds of thousands of
/// offsets: a few instructions each.
pub fn change_each<T: ByteValued>(
    slice: VolatileSlice,
    offsets: impl Iterator<Item = usize>,
    change: impl Fn(T) -> T,
) -> Result<()> {
    let guard = slice.ptr_guard_mut();
    let last = slice.len().checked_sub(size_of::<T>()).context("nothing to change")?;
    for offset in offsets {
        ensure!(offset <= last, "no RAM at offset {offset:#x}");
        // SAFETY: `offset` and a whole `T` after it are within the slice.
        let value = unsafe { guard.as_ptr().add(offset) }.cast::<T>();
        // SAFETY: as above; any bytes are a `T`, and nobody holds references to guest RAM.
        let old = unsafe { value.read_unaligned() };
        // SAFETY: as above.
        unsafe { value.write_unaligned(change(old)) };
    }
    Ok(())
}

/// Resets RAM that no guest uses any more: it reads as zero, and blocks are unplugged. Pages go back to the host,
/// except `hugepages`, which others could then take from the pool.
pub fn discard(ram: &GuestRam, hugepages: bool) -> Result<()> {
    for region in ram.iter() {
        if hugepages {
            let zeroes = vec![0; HUGE_PAGE];
            for offset in (0..region.len()).step_by(HUGE_PAGE) {
                region.write(&zeroes, MemoryRegionAddress(offset))?;
            }
            continue;
        }
        if let Some(blocks) = region.blocks() {
            blocks.forget();
        }
        let len = usize::try_from(region.len())?;
        region.discard(region.host(), len).context("cannot discard guest RAM")?;
    }
    Ok(())
}

/// Gives `len` bytes at `pages`, whole pages of anonymous guest RAM, back to the host.
fn forget(pages: *mut u8, len: usize) -> Result<()> {
    // SAFETY: the range is within a mapping of guest RAM, which is only touched through volatile accessors; they may
    // find it zero at any time.
    Ok(unsafe { rustix::mm::madvise(pages.cast(), len, Advice::LinuxDontNeed) }?)
}

/// The region of `ram` that `len` bytes of our memory at `start` are in.
fn region_of(ram: &GuestRam, start: usize, len: usize) -> Option<&RamRegion> {
    ram.iter().find(|region| {
        let base = region.host().addr();
        base <= start && start - base + len <= region.len() as usize
    })
}

/// Gives the whole pages of `slice`, a part of `ram`, back to the host; they read as zero from then on.
pub fn give_back(ram: &GuestRam, slice: &VolatileSlice) -> Result<()> {
    let guard = slice.ptr_guard_mut();
    let (start, end) = (guard.as_ptr().addr(), guard.as_ptr().addr() + guard.len());
    let region = region_of(ram, start, guard.len()).context("not guest RAM")?;
    let (first, last) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    if first >= last {
        return Ok(());
    }
    let pages = guard.as_ptr().map_addr(|_| first);
    region.discard(pages, last - first).context("cannot give guest RAM back")
}

/// The part of `ram` that has host pages, in KiB, by `maps` (/proc/PID/smaps, proc(5)).
pub fn resident_kib(ram: &GuestRam, maps: &str) -> u64 {
    let regions: Vec<_> = ram.iter().map(|r| r.host() as u64..r.host() as u64 + r.len()).collect();
    let mut of_guest = false;
    let mut sum = 0;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        // A mapping starts with its addresses, `7f00-7fff`, and continues with fields, `Rss: 4 kB`.
        if let Some(start) =
            first.split_once('-').and_then(|(s, _)| u64::from_str_radix(s, 16).ok())
        {
            of_guest = regions.iter().any(|region| region.contains(&start));
        } else if of_guest && first == "Rss:" {
            sum += second.parse().unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn ram_is_aligned_split_at_the_gap_and_zero_again_after_discard() {
        for shared in [false, true] {
            check(Backing { hugepages: false, shared });
        }
    }

    fn check(backing: Backing) {
        let ram = allocate(layout::GAP_START + 2 * layout::MIB, backing).unwrap();
        assert!(ram.iter().all(|r| (r.host() as usize).is_multiple_of(HUGE_PAGE)));
        assert!(ram.check_address(GuestAddress(layout::GAP_START)).is_none());
        let high = GuestAddress(layout::GAP_END + 4096);
        let resident = || resident_kib(&ram, &std::fs::read_to_string("/proc/self/smaps").unwrap());
        let before = resident();
        for hugepages in [false, true] {
            ram.write_obj(7u64, high).unwrap();
            assert!(resident() > before, "a page is there");
            discard(&ram, hugepages).unwrap();
            assert_eq!(ram.read_obj::<u64>(high).unwrap(), 0);
        }
    }
}

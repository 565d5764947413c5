//! Guest RAM in a file: all regions one after the other, at multiples of a page; pages of zeroes are holes. What follows
//! are markers, each at the start of a page.
//!
//! A file can have what has changed only. Its holes are what has not changed: the data in it, copied over the file that the
//! machine was made of, gives all of RAM. Of that file's markers it has none, so they show whether that was done.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, PAGE, RamRegion};

/// Bytes that are looked at together.
const PIECE: usize = 64 << 10;
/// An entry of pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is in memory, or swapped out.
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
/// It is a file's, and no private copy.
const OF_FILE: u64 = 1 << 61;

/// Random bytes that a file of RAM ends with, and its machine's state has: they show that the two belong together, and that
/// the file was copied to its end.
pub type Marker = [u8; 16];

/// How much of guest RAM a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All.
    Full,
    /// What may have changed since the machine was made of a file, or since its start; also zeroes.
    Diff,
}

/// What a file has of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Hole,
    UnlessZero,
    Always,
}

/// Bytes of the file of `ram`, without markers.
fn ram_len(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Where the marker with this index is.
fn marker_at(ram: &GuestRam, index: usize) -> u64 {
    ram_len(ram) + (index * PAGE) as u64
}

/// Whether a file of what has changed in `ram` is less than all of it.
pub fn needs_base(ram: &GuestRam) -> bool {
    ram.iter().any(|region| region.is_of_file() || region.is_served())
}

/// Writes `extent` of `ram`, which no guest uses at present, to `file`, which is empty, and the last of `markers`: those
/// before it are of the file that this one is to be copied over. `pagemap` is this process's `/proc/self/pagemap`: what was
/// never touched is not touched now.
pub fn save(
    ram: &GuestRam,
    pagemap: &File,
    extent: Extent,
    markers: &[Marker],
    file: &File,
) -> Result<()> {
    let (marker, before) = markers.split_last().context("no marker")?;
    // First of all: a file that grows bit by bit can get more than was written to it.
    file.write_all_at(marker, marker_at(ram, before.len())).context("cannot write guest RAM")?;
    let (mut start, mut written) = (0, marker.len() as u64);
    for region in ram.iter() {
        written += save_region(region, pagemap, extent, file, start)?;
        start += region.len();
    }
    if extent == Extent::Diff { ensure_holes(file, written) } else { Ok(()) }
}

/// Writes a region to `file`, from `start` on. Returns the bytes that were written.
fn save_region(
    region: &RamRegion,
    pagemap: &File,
    extent: Extent,
    file: &File,
    start: u64,
) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut written = 0;
    for offset in (0..region.len()).step_by(PIECE) {
        let len = (region.len() - offset).min(PIECE as u64);
        if is_empty(region, offset..offset + len) {
            continue;
        }
        let mut kept = [Kept::Hole; PIECE / PAGE];
        let kept = &mut kept[..len as usize / PAGE];
        choose(kept, region, offset, pagemap, extent)?;
        let mut at = offset;
        for run in kept.chunk_by(PartialEq::eq) {
            let len = run.len() * PAGE;
            if run[0] != Kept::Hole {
                let bytes = &mut buffer[..len];
                region.any_slice(at..at + len as u64)?.copy_to(bytes);
                let pages = write_pages(region, at, bytes, run[0], file, start);
                written += pages.context("cannot write guest RAM")?;
            }
            at += len as u64;
        }
    }
    Ok(written)
}

/// Whether all of `bytes` is unplugged, and so is no guest's: it is zero when it is plugged, whatever a file has there.
fn is_empty(region: &RamRegion, bytes: std::ops::Range<u64>) -> bool {
    region.blocks().is_some_and(|blocks| !blocks.is_plugged((bytes.start / blocks.size()) as usize))
}

/// Chooses what a file has of the pages at `offset`.
fn choose(
    kept: &mut [Kept],
    region: &RamRegion,
    offset: u64,
    pagemap: &File,
    extent: Extent,
) -> Result<()> {
    let (of_file, is_diff) = (region.is_of_file(), extent == Extent::Diff);
    let served = region.is_served();
    if (of_file || served) && !is_diff {
        // A page that was not touched yet is in no table, and it is not zero.
        kept.fill(Kept::UnlessZero);
        return Ok(());
    }
    let mut entries = [0; PIECE / PAGE * 8];
    let entries = &mut entries[..kept.len() * 8];
    let first = (region.host() as u64 + offset) / PAGE as u64;
    pagemap.read_exact_at(entries, first * 8).context("/proc/self/pagemap")?;
    let entries = entries.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry));
    for ((index, kept), entry) in kept.iter_mut().enumerate().zip(entries) {
        let is_there = entry & PRESENT_OR_SWAPPED != 0;
        *kept = match () {
            () if is_diff && region.was_once_filled(offset + (index * PAGE) as u64) => Kept::Always,
            () if of_file && is_there && entry & OF_FILE == 0 => Kept::Always,
            // Which of them were written, the host does not say.
            () if served && is_there => Kept::Always,
            () if !of_file && is_there => Kept::UnlessZero,
            () => Kept::Hole,
        };
    }
    Ok(())
}

/// Writes the pages of `bytes`, neighbours together, to their place: `at` in a region whose place in the file is `start`.
/// Returns the bytes that were written.
fn write_pages(
    region: &RamRegion,
    at: u64,
    bytes: &[u8],
    kept: Kept,
    file: &File,
    start: u64,
) -> std::io::Result<u64> {
    let is_written = |page: &[u8]| kept == Kept::Always || !is_zero(page);
    let (mut done, mut written) = (0, 0);
    let pages: Vec<_> = bytes.chunks(PAGE).collect();
    for run in pages.chunk_by(|one, next| is_written(one) == is_written(next)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if is_written(run[0]) {
            let offset = at + done as u64;
            file.write_all_at(&bytes[done..done + len], start + offset)?;
            written += len as u64;
            if !region.is_of_file() && !region.is_served() {
                // When it is zero again, or given back, the next file has to say so.
                region.was_filled(offset, len);
            }
        }
        done += len;
    }
    Ok(written)
}

fn is_zero(page: &[u8]) -> bool {
    page.as_chunks().0.iter().all(|word| u64::from_ne_bytes(*word) == 0)
}

/// Checks that what was not `written` to `file` is a hole: data there would be zero, and take the place of what has not
/// changed.
fn ensure_holes(file: &File, written: u64) -> Result<()> {
    let (mut at, mut data) = (0, 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error).context("SEEK_DATA"),
        };
        at = seek(file, SeekFrom::Hole(start)).context("SEEK_HOLE")?;
        data += at - start;
    }
    ensure!(
        data == written,
        "{data} bytes of data where {written} were written: its file system does not keep each page apart, name a file on          another (ext4, xfs, btrfs, tmpfs), or make a Full snapshot"
    );
    Ok(())
}

/// Has `ram`, which is new, have the contents of `file`, which must never change: pages are read when they are touched,
/// and copied when they are written. With `hugepages`, which no file has, all is read now. Without `markers`, only the
/// file's length shows whether it belongs to the machine.
pub fn restore(ram: &GuestRam, file: &File, markers: &[Marker], hugepages: bool) -> Result<()> {
    let len = file.metadata()?.size();
    let expected = match markers.split_last() {
        Some((last, before)) => marker_at(ram, before.len()) + last.len() as u64,
        None => ram_len(ram),
    };
    let no_base = "the snapshot is a Diff, and this is not the memory that it was made over with the Diff's data copied \
                   into it: copy that into the file that the machine was made of";
    ensure!(len == expected || markers.len() < 2, no_base);
    ensure!(
        len == expected,
        "it has {len} bytes and the machine's memory {expected}: it is damaged"
    );
    for (index, marker) in markers.iter().enumerate() {
        let mut found = Marker::default();
        file.read_exact_at(&mut found, marker_at(ram, index))?;
        ensure!(found == *marker || index + 1 == markers.len(), no_base);
        ensure!(
            found == *marker,
            "it is another snapshot's, or was not copied to its end: copy the whole folder again"
        );
    }
    let mut start = 0;
    for region in ram.iter() {
        match hugepages {
            true => read(region, file, start)?,
            false => map(region, file, start)?,
        }
        start += region.len();
    }
    Ok(())
}

fn read(region: &RamRegion, file: &File, start: u64) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    for offset in (0..region.len()).step_by(PIECE) {
        let len = (region.len() - offset).min(PIECE as u64);
        let piece = &mut buffer[..len as usize];
        file.read_exact_at(piece, start + offset)?;
        region.write_slice(piece, vm_memory::MemoryRegionAddress(offset))?;
        for (page, at) in piece.chunks(PAGE).zip((offset..).step_by(PAGE)) {
            if !is_zero(page) {
                region.was_filled(at, PAGE);
            }
        }
    }
    Ok(())
}

fn map(region: &RamRegion, file: &File, start: u64) -> Result<()> {
    let (address, len) = (region.host(), usize::try_from(region.len())?);
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: in place of the pages of guest RAM, which is only touched through volatile accessors.
    unsafe {
        rustix::mm::mmap(address.cast(), len, prot, flags | MapFlags::NORESERVE, file, start)
    }
    .context("cannot map it")?;
    region.set_of_file();
    Ok(())
}

/// Puts new pages, which are zero, in the place of those of a file.
pub(super) fn renew(start: *mut u8, len: usize) -> Result<()> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: in place of pages of guest RAM, which the caller has looked up, and which is only touched through volatile
    // accessors; they may find it zero at any time.
    let renewed =
        unsafe { rustix::mm::mmap_anonymous(start.cast(), len, prot, flags | MapFlags::NORESERVE) };
    ensure!(ptr::eq(renewed.context("cannot discard guest RAM")?, start.cast()), "mmap");
    Ok(())
}

#[cfg(test)]
mod tests;

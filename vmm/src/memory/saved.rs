//! Guest RAM in a file: all regions one after the other, at multiples of a page; pages of zeroes are holes. What follows
//! is a marker.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, PAGE, RamRegion};

/// Bytes that are looked at together.
const PIECE: usize = 64 << 10;
/// An entry of pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is in memory, or swapped out.
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// Random bytes that a file of RAM ends with, and its machine's state has: they show that the two belong together, and that
/// the file was copied to its end.
pub type Marker = [u8; 16];

/// Bytes of the file of `ram`, without a marker.
fn file_len(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Writes `ram`, which no guest uses at present, and `marker` to `file`, which is empty. `pagemap` is this process's
/// `/proc/self/pagemap`: what was never touched is not touched now.
pub fn save(ram: &GuestRam, pagemap: &File, marker: &Marker, file: &File) -> Result<()> {
    let mut start = 0;
    for region in ram.iter() {
        let mut buffer = vec![0; PIECE];
        for offset in (0..region.len()).step_by(PIECE) {
            let len = (region.len() - offset).min(PIECE as u64);
            if is_empty(region, offset..offset + len) || !is_touched(region, offset, len, pagemap)?
            {
                continue;
            }
            let piece = &mut buffer[..len as usize];
            region.any_slice(offset..offset + len)?.copy_to(piece);
            write_pages(piece, file, start + offset).context("cannot write guest RAM")?;
        }
        start += region.len();
    }
    file.write_all_at(marker, start).context("cannot write guest RAM")
}

/// Whether all of `bytes` is unplugged, and so is no guest's.
fn is_empty(region: &RamRegion, bytes: std::ops::Range<u64>) -> bool {
    region.blocks().is_some_and(|blocks| !blocks.is_plugged((bytes.start / blocks.size()) as usize))
}

/// Whether a part of these bytes may be other than zero.
fn is_touched(region: &RamRegion, offset: u64, len: u64, pagemap: &File) -> Result<bool> {
    // A page of a file that was not read yet is in no table, and it is not zero.
    if region.is_of_file() {
        return Ok(true);
    }
    let mut entries = [0; PIECE / PAGE * 8];
    let entries = &mut entries[..len as usize / PAGE * 8];
    let page = (region.host() as u64 + offset) / PAGE as u64;
    pagemap.read_exact_at(entries, page * 8).context("/proc/self/pagemap")?;
    let touched = |entry: &[u8; 8]| u64::from_le_bytes(*entry) & PRESENT_OR_SWAPPED != 0;
    Ok(entries.as_chunks().0.iter().any(touched))
}

/// Writes the pages of `bytes` that are not zero, neighbours together.
fn write_pages(bytes: &[u8], file: &File, at: u64) -> std::io::Result<()> {
    let is_zero =
        |page: &[u8]| page.as_chunks().0.iter().all(|word| u64::from_ne_bytes(*word) == 0);
    let mut done = 0;
    let pages: Vec<_> = bytes.chunks(PAGE).collect();
    for run in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if !is_zero(run[0]) {
            file.write_all_at(&bytes[done..done + len], at + done as u64)?;
        }
        done += len;
    }
    Ok(())
}

/// Has `ram`, which is new, have the contents of `file`, which must never change: pages are read when they are touched,
/// and copied when they are written. With `hugepages`, which no file has, all is read now. Without a `marker`, only the
/// file's length shows whether it belongs to the machine.
pub fn restore(
    ram: &GuestRam,
    file: &File,
    marker: Option<&Marker>,
    hugepages: bool,
) -> Result<()> {
    let end = file_len(ram);
    let (len, expected) = (file.metadata()?.size(), end + marker.map_or(0, |m| m.len() as u64));
    ensure!(
        len == expected,
        "it has {len} bytes and the machine's memory {expected}: it is damaged"
    );
    if let Some(marker) = marker {
        let mut found = Marker::default();
        file.read_exact_at(&mut found, end)?;
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

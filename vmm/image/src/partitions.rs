//! The partitions of a disk image. Only where each is and what it is for is needed, so this is no crate: all numbers are a
//! guest's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;
/// Most partitions that are looked at, as sfdisk(8) makes them.
const MOST: u32 = 128;
/// A file system without partitions is found by no table.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// UEFI specification 2.10, 5.3.2 and 5.3.3.
const GPT: &[u8] = b"EFI PART";
const ENTRY: usize = 128;

/// A piece of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1 on; 0 is all of the disk.
    pub number: u32,
    /// In bytes.
    pub start: u64,
    pub len: u64,
}

/// The partitions of `disk` with `len` bytes; all of it if it has no table.
pub fn partitions(disk: &File, len: u64) -> io::Result<Vec<Partition>> {
    let mut head = [0; 2 * SECTOR as usize];
    disk.read_exact_at(&mut head, 0)?;
    let (mbr, gpt) = head.split_at(SECTOR as usize);
    let mut found = match () {
        () if gpt.starts_with(GPT) => of_gpt(disk, gpt)?,
        () if mbr[510..] == SIGNATURE => of_mbr(mbr),
        () => Vec::new(),
    };
    found.retain(|part| {
        part.len > 0 && part.start.checked_add(part.len).is_some_and(|end| end <= len)
    });
    if found.is_empty() {
        found.push(Partition { number: 0, start: 0, len });
    }
    Ok(found)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// A partition of sectors, as its table says.
fn sectors(number: u32, first: u64, count: u64) -> Option<Partition> {
    Some(Partition { number, start: first.checked_mul(SECTOR)?, len: count.checked_mul(SECTOR)? })
}

fn of_gpt(disk: &File, header: &[u8]) -> io::Result<Vec<Partition>> {
    let (table, count, size) =
        (number(&header[72..80]), number(&header[80..84]), number(&header[84..88]));
    let mut found = Vec::new();
    for index in 0..MOST.min(count as u32) {
        let at = table.checked_mul(SECTOR).and_then(|at| at.checked_add(u64::from(index) * size));
        let mut entry = [0; ENTRY];
        disk.read_exact_at(&mut entry, at.ok_or(io::ErrorKind::InvalidData)?)?;
        let (kind, first, last) =
            (number(&entry[..16]), number(&entry[32..40]), number(&entry[40..48]));
        if kind != 0 && last >= first {
            found.extend(sectors(index + 1, first, (last - first).saturating_add(1)));
        }
    }
    Ok(found)
}

/// The four of a PC's master boot record; those within an extended one have no kernel.
fn of_mbr(record: &[u8]) -> Vec<Partition> {
    let entries = record[446..510].chunks_exact(16).zip(1..);
    let of = |(entry, index): (&[u8], u32)| {
        sectors(index, number(&entry[8..12]), number(&entry[12..16]))
    };
    entries.filter_map(of).collect()
}

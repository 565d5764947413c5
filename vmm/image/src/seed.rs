//! The disk that cloud-init finds by its label and takes a guest's first configuration from: its data source NoCloud.
//!
//! An ISO 9660 file system (ECMA-119) with files in its root folder: what cloud-init reads, Linux mounts, and these lines
//! can write; the crates that could write one are not maintained.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: usize = 2048;
const LABEL: &[u8] = b"cidata";
/// Sectors: the description of the volume, where these end, both tables of paths, and the folder; files follow.
const VOLUME: usize = 16;
const END: usize = 17;
const PATHS: [usize; 2] = [18, 19];
const FOLDER: usize = 20;
const FILES: usize = 21;
/// The identifier and the version of a descriptor (8.1).
const STANDARD: &[u8] = b"CD001\x01";
/// 1970-01-01, so that the same files make the same bytes.
const DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];
const IS_FOLDER: u8 = 2;

/// Writes the disk with `files`, each a name and what it has, to `disk`, which is empty. A name is at most 26 bytes of
/// small letters and hyphens; all names together fit a sector.
pub fn write_seed(disk: &File, files: &[(&str, Vec<u8>)]) -> io::Result<()> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    let mut folder =
        [record(FOLDER, SECTOR, IS_FOLDER, b"\0"), record(FOLDER, SECTOR, IS_FOLDER, b"\x01")]
            .concat();
    let mut at = FILES;
    for (name, contents) in files {
        folder.extend(record(
            at,
            contents.len(),
            0,
            format!("{}.;1", name.to_uppercase()).as_bytes(),
        ));
        disk.write_all_at(contents, (at * SECTOR) as u64)?;
        at += contents.len().div_ceil(SECTOR);
    }
    disk.set_len((at * SECTOR) as u64)?;
    let sectors = [
        (VOLUME, volume(at)),
        (END, [b"\xff", STANDARD].concat()),
        (PATHS[0], path(&(FOLDER as u32).to_le_bytes(), &1u16.to_le_bytes())),
        (PATHS[1], path(&(FOLDER as u32).to_be_bytes(), &1u16.to_be_bytes())),
        (FOLDER, folder),
    ];
    sectors.iter().try_for_each(|(at, bytes)| disk.write_all_at(bytes, (at * SECTOR) as u64))
}

/// A number in both orders of bytes (7.3.3).
fn both(number: usize) -> Vec<u8> {
    let number = number as u32;
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// 7.2.3.
fn both_short(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// An entry of a folder (9.1).
fn record(at: usize, len: usize, flags: u8, name: &[u8]) -> Vec<u8> {
    let mut record =
        [&[0, 0][..], &both(at), &both(len), &DATE, &[flags, 0, 0], &both_short(1)].concat();
    record.push(name.len() as u8);
    record.extend(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = record.len() as u8;
    record
}

/// The table of paths, which has the root only (9.4).
fn path(at: &[u8], parent: &[u8]) -> Vec<u8> {
    [&[1, 0], at, parent, &[0, 0]].concat()
}

/// The primary descriptor of a volume of `sectors` (8.4).
fn volume(sectors: usize) -> Vec<u8> {
    let mut volume = vec![0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| volume[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x01");
    put(1, STANDARD);
    put(8, &[b' '; 64]);
    put(40, LABEL);
    put(80, &both(sectors));
    put(120, &[both_short(1), both_short(1), both_short(SECTOR as u16), both(10)].concat());
    put(140, &(PATHS[0] as u32).to_le_bytes());
    put(148, &(PATHS[1] as u32).to_be_bytes());
    put(156, &record(FOLDER, SECTOR, IS_FOLDER, b"\0"));
    put(190, &[b' '; 623]); // names of people and files
    for at in [813, 830, 847, 864] {
        put(at, &[b'0'; 16]); // no date
    }
    put(881, b"\x01");
    volume
}

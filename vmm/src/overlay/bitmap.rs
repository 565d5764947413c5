//! The blocks of a layer: a bit for each, in the sectors of its file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::sector;

/// Bits in a sector.
const BITS: u64 = sector::ROOM as u64 * 8;

/// A bit for each block of a disk. Bits are only ever set.
pub struct Bitmap {
    /// The contents of the file, but for the CRCs of dirty sectors.
    bytes: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Bitmap {
    /// Bytes of the bitmap of `blocks` blocks in the file.
    pub fn len_for(blocks: u64) -> u64 {
        blocks.div_ceil(BITS) * sector::SIZE as u64
    }

    /// Reads the bits of `blocks` blocks from `offset` of `file` on, and checks them.
    pub fn load(file: &File, offset: u64, blocks: u64) -> Result<Self> {
        let mut bytes = vec![0; usize::try_from(Self::len_for(blocks))?];
        file.read_exact_at(&mut bytes, offset).context("cannot read its bitmap")?;
        for (index, sector) in bytes.chunks_exact(sector::SIZE).enumerate() {
            // A hole was never written.
            let sound = sector.iter().all(|byte| *byte == 0) || sector::is_sound(sector);
            ensure!(
                sound,
                "its bitmap is damaged in sector {index}: remove it, or take it from a backup"
            );
        }
        Ok(Self { bytes, dirty: BTreeSet::new() })
    }

    /// Whether `block` is in the layer.
    pub fn has(&self, block: u64) -> bool {
        let (byte, bit) = place(block);
        self.bytes[byte] & bit != 0
    }

    /// Marks `blocks` as in the layer.
    pub fn insert(&mut self, blocks: Range<u64>) {
        for block in blocks {
            let (byte, bit) = place(block);
            if self.bytes[byte] & bit == 0 {
                self.bytes[byte] |= bit;
                self.dirty.insert(byte / sector::SIZE);
            }
        }
    }

    /// Whether bits were set since the last write.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Writes dirty sectors to `offset` of `file`. Sectors that fail stay dirty.
    pub fn write(&mut self, file: &File, offset: u64) -> io::Result<()> {
        while let Some(index) = self.dirty.first().copied() {
            let at = index * sector::SIZE;
            let sector = &mut self.bytes[at..at + sector::SIZE];
            sector::seal(sector);
            file.write_all_at(sector, offset + at as u64)?;
            self.dirty.remove(&index);
        }
        Ok(())
    }
}

/// Byte and bit of `block`.
fn place(block: u64) -> (usize, u8) {
    let (sector, bit) = ((block / BITS) as usize, (block % BITS) as usize);
    (sector * sector::SIZE + bit / 8, 1 << (bit % 8))
}

//! The first sector of a layer: its format and its disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::bitmap::Bitmap;
use super::sector;

const MAGIC: [u8; 8] = *b"TVMMLAYR";
const VERSION: u32 = 1;
/// Offset of the bitmap in the file.
pub const BITMAP: u64 = 4096;
/// Smallest block: file systems write no less.
const MIN_BLOCK: u64 = 4096;
/// Largest block.
const MAX_BLOCK: u64 = 1 << 20;
/// Most blocks of a disk; their bits take 4 MiB of memory.
const MAX_BLOCKS: u64 = 1 << 25;
/// Bytes at the disk's start that the fingerprint covers: partition table, superblocks.
const START: u64 = 64 << 10;
/// Number of further samples of the fingerprint, and bytes of each.
const PLACES: u64 = 64;
const SAMPLE: u64 = 4096;

/// The contents of a layer's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a block: a power of two.
    pub block: u64,
    /// Bytes of the layer's disk.
    pub len: u64,
    /// CRC-32 of parts of the disk.
    pub fingerprint: u32,
}

impl Header {
    /// The header of a layer for `base`, a disk of `len` bytes.
    pub fn new(base: &File, len: u64) -> Result<Self> {
        let mut block = MIN_BLOCK;
        while len.div_ceil(block) > MAX_BLOCKS {
            block *= 2;
        }
        ensure!(
            block <= MAX_BLOCK,
            "the disk is too large for an overlay: {} TiB at most",
            (MAX_BLOCK * MAX_BLOCKS) >> 40
        );
        let fingerprint = fingerprint(base, len).context("cannot read the disk")?;
        Ok(Self { block, len, fingerprint })
    }

    /// The number of the disk's blocks; the last one may be partial.
    pub fn blocks(&self) -> u64 {
        self.len.div_ceil(self.block)
    }

    /// Offset of the disk's first byte in the file.
    pub fn data(&self) -> u64 {
        (BITMAP + Bitmap::len_for(self.blocks())).next_multiple_of(self.block)
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.data() + self.len
    }

    /// The header's bytes in the file.
    pub fn to_bytes(self) -> [u8; sector::SIZE] {
        let mut bytes = [0; sector::SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.block.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.len.to_le_bytes());
        sector::seal(&mut bytes);
        bytes
    }

    /// Checks that `file` starts with this header and has the right length.
    pub fn check(&self, file: &File) -> Result<()> {
        let mut bytes = [0; sector::SIZE];
        let read = file.read_exact_at(&mut bytes, 0);
        if read.is_err() || bytes[..8] != MAGIC {
            bail!("it is no overlay: name a file that is not there yet, or one that tinyvmm made");
        }
        ensure!(
            sector::is_sound(&bytes),
            "its header is damaged: remove it, or take it from a backup"
        );
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        ensure!(
            version == VERSION,
            "its format is version {version}, this tinyvmm knows {VERSION}: use the one that made it"
        );
        ensure!(
            bytes == self.to_bytes(),
            "it was made for another disk, or the disk was written to since: use the disk as it \
             was, or remove the overlay"
        );
        let len = file.metadata()?.len();
        ensure!(
            len == self.file_len(),
            "it is cut off: {len} bytes instead of {}: remove it, or take it from a backup",
            self.file_len()
        );
        Ok(())
    }
}

/// CRC-32 of the disk's start and of samples spread over the rest, which distinguishes disks without reading all of
/// them.
fn fingerprint(base: &File, len: u64) -> io::Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    let mut bytes = vec![0; START as usize];
    let mut look = |offset: u64, max: u64| {
        let part = &mut bytes[..max.min(len - offset) as usize];
        base.read_exact_at(part, offset)?;
        crc.update(part);
        io::Result::Ok(())
    };
    look(0, START)?;
    for place in 1..=PLACES {
        look(len / PLACES * place - (len / PLACES).min(SAMPLE), SAMPLE)?;
    }
    Ok(crc.finalize())
}

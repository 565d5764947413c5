//! A disk with a file system that Linux has had since 5.4 and that needs nothing else to be made: EROFS, without
//! compression (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h). Contents of files come first, as they arrive;
//! what describes them follows. The same files make the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::meta;
use crate::tree::Tree;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const SUPER_AT: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// log2 of [`BLOCK`].
const BLOCK_BITS: u8 = 12;

/// A disk that is being written.
pub struct Disk<'a> {
    out: BufWriter<&'a File>,
    /// The first block that is free.
    pub next: u32,
    limit: u64,
}

impl<'a> Disk<'a> {
    /// Begins one in `file`, which is empty, of at most `limit` bytes.
    pub fn new(file: &'a File, limit: u64) -> Result<Self> {
        let mut this = Self { out: BufWriter::with_capacity(1 << 20, file), next: 0, limit };
        this.write(&[0; BLOCK])?; // the super block's
        this.next = 1;
        Ok(this)
    }

    /// Adds contents of `size` bytes; returns their first block.
    pub fn add(&mut self, contents: &mut dyn Read, size: u64) -> Result<u32> {
        let first = self.next;
        self.take(size)?;
        let mut rest = contents.take(size);
        // Not by io::copy, which would hide whether reading or writing has failed.
        let mut buffer = [0; 16 << 10];
        let mut left = size;
        while left > 0 {
            let len = rest.read(&mut buffer).context("its contents")?;
            ensure!(len > 0, "its contents end early");
            self.write(&buffer[..len])?;
            left -= len as u64;
        }
        self.pad(size as usize)?;
        Ok(first)
    }

    /// Takes the blocks for `size` bytes.
    pub fn take(&mut self, size: u64) -> Result<()> {
        let end = u64::from(self.next) * BLOCK as u64;
        let fits = end.checked_add(size).is_some_and(|end| end <= self.limit);
        ensure!(fits, "{}", too_large(self.limit));
        let blocks = u32::try_from(size.div_ceil(BLOCK as u64))?;
        self.next = self.next.checked_add(blocks).context("too many blocks")?;
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context("cannot write the disk")
    }

    /// Fills the block in which `len` bytes end.
    pub fn pad(&mut self, len: usize) -> Result<()> {
        self.write(&[0; BLOCK][..len.next_multiple_of(BLOCK) - len])
    }

    /// Adds what describes the files, and ends it.
    pub fn finish(mut self, tree: &Tree) -> Result<()> {
        let first = self.next;
        let (root, count) = meta::write(tree, &mut self)?;
        let mut block = Vec::with_capacity(128);
        block.extend(MAGIC.to_le_bytes());
        block.extend([0; 8]); // no checksum, no compatible features
        block.extend([BLOCK_BITS, 0]);
        block.extend(root.to_le_bytes());
        block.extend(count.to_le_bytes());
        block.extend([0; 12]); // no time of building
        block.extend(self.next.to_le_bytes());
        block.extend(first.to_le_bytes());
        block.resize(128, 0); // no shared attributes, no name, no incompatible features
        let mut write = || -> io::Result<()> {
            self.out.seek(SeekFrom::Start(SUPER_AT))?;
            self.out.write_all(&block)?;
            self.out.flush()
        };
        write().context("cannot write the disk")
    }
}

/// Whether `file` is a disk that was written to its end.
pub fn is_whole(file: &File) -> bool {
    let mut block = [0; 44];
    let found = file.metadata().map(|found| found.len());
    file.read_exact_at(&mut block, SUPER_AT).is_ok()
        && block.starts_with(&MAGIC.to_le_bytes())
        && found.is_ok_and(|len| block[36..40] == ((len / BLOCK as u64) as u32).to_le_bytes())
}

/// Why more than `limit` bytes are refused.
pub fn too_large(limit: u64) -> String {
    format!("it has more than {} MiB unpacked: allow more with --image-limit SIZE", limit >> 20)
}

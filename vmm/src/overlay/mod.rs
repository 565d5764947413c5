//! A layer over a disk: takes the guest's writes, so that many machines can share the disk. docs/overlay.md describes
//! the format of its file.

mod bitmap;
mod header;
mod sector;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

use self::bitmap::Bitmap;
use self::header::{BITMAP, Header};
use crate::flock;
use crate::memory::buffers::Buffers;
use crate::pieces::{self, Zero};

/// The blocks that the guest has written, over a base file that is only read.
pub struct Layer {
    file: Arc<File>,
    header: Header,
    bitmap: Bitmap,
    /// FLUSH has to make the layer survive a crash of the host.
    kept: bool,
    /// A write to the file may be lost: no bit may be set in the file any more.
    failed: Arc<AtomicBool>,
    /// The loss was logged, in one of the machine's boots.
    loss_logged: Arc<AtomicBool>,
}

impl Layer {
    /// Opens the layer in `file` over `base`, which has `len` bytes; makes the layer if the file is empty. Locks the
    /// file unless it stays `unlocked`.
    pub fn kept(file: File, base: &File, len: u64, unlocked: bool) -> Result<Self> {
        let (ours, theirs) = (file.metadata()?, base.metadata()?);
        ensure!(ours.is_file(), "not a regular file");
        let same = (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino());
        ensure!(!same, "it is the disk itself: name another file");
        if !unlocked {
            flock::lock(&file, false, ": stop that one, or use another overlay")?;
        }
        Self::of_file(file, base, len, true)
    }

    /// A layer in `file`, which is empty and without a name, over `base`, which has `len` bytes. It is lost with its
    /// last clone.
    pub fn temporary(file: File, base: &File, len: u64) -> Result<Self> {
        Self::of_file(file, base, len, false)
    }

    /// The layer of the file, complete once all writers are dropped.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.clone();
        let bitmap = Bitmap::load(&file, BITMAP, self.header.blocks()).context("overlay")?;
        let (failed, loss_logged) = (self.failed.clone(), self.loss_logged.clone());
        Ok(Self { file, bitmap, header: self.header, kept: self.kept, failed, loss_logged })
    }

    fn of_file(file: File, base: &File, len: u64, kept: bool) -> Result<Self> {
        let header = Header::new(base, len)?;
        if file.metadata()?.len() == 0 {
            let make = || {
                file.write_all_at(&header.to_bytes(), 0)?;
                file.set_len(header.file_len())?;
                if kept { file.sync_all() } else { Ok(()) }
            };
            make().context("cannot make it")?;
        }
        header.check(&file)?;
        let bitmap = Bitmap::load(&file, BITMAP, header.blocks())?;
        let (failed, loss_logged) = Default::default();
        Ok(Self { file: file.into(), header, bitmap, kept, failed, loss_logged })
    }

    /// The file that it is in.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes of a block: what it takes and gives back at least.
    pub fn block(&self) -> u64 {
        self.header.block
    }

    /// Where `offset` of the disk is in that file.
    pub fn place(&self, offset: u64) -> u64 {
        self.header.data() + offset
    }

    /// Whether all of `range` is in the layer, or none; `None` if a part is.
    pub fn reads_from_one(&self, range: &Range<u64>) -> Option<bool> {
        let (ours, until) = self.run(range.clone());
        (until >= range.end).then_some(ours)
    }

    /// Whether `range` can be written as it is: nothing has to be copied from the base.
    pub fn takes_whole(&self, range: &Range<u64>) -> bool {
        let block = self.header.block;
        let whole = |at: u64| at.is_multiple_of(block) || self.bitmap.has(at / block);
        whole(range.start) && (range.end == self.header.len || whole(range.end))
    }

    /// All of `range`, which it takes whole, was written.
    pub fn has_taken(&mut self, range: &Range<u64>) {
        self.bitmap.insert(self.blocks(range));
    }

    /// The blocks that `range` is in.
    fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.header.block..range.end.div_ceil(self.header.block)
    }

    /// Reads into all of `data` from `offset` of the disk.
    pub fn read(&self, base: &File, mut data: Buffers, mut offset: u64) -> io::Result<()> {
        let end = offset + data.len() as u64;
        while offset < end {
            let (ours, until) = self.run(offset..end);
            let part = data.take((until - offset) as usize);
            match ours {
                true => part.read_from_file(&self.file, self.place(offset))?,
                false => part.read_from_file(base, offset)?,
            }
            offset = until;
        }
        Ok(())
    }

    /// Writes all of `data` at `offset` of the disk.
    pub fn write(&mut self, base: &File, data: Buffers, offset: u64) -> io::Result<()> {
        let at = self.place(offset);
        let range = offset..offset + data.len() as u64;
        self.change(base, range, |file| data.write_to_file(file, at))
    }

    /// Zeroes or discards `range` of the disk; zeroes take no space where the file system supports holes.
    pub fn zero(&mut self, base: &File, range: Range<u64>, how: Zero) -> io::Result<()> {
        let at = self.place(range.start)..self.place(range.end);
        let how = if how == Zero::Keep { Zero::Unmap } else { how };
        self.change(base, range, |file| pieces::zero(file, 1, at, how))
    }

    /// Makes writes survive a crash of the host, if the layer is kept.
    pub fn sync(&mut self) -> io::Result<()> {
        if !self.kept {
            return Ok(());
        }
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush failed"));
        }
        let result = self.commit();
        self.failed.store(result.is_err(), Ordering::SeqCst);
        result
    }

    /// Writes all that the layer has to its file: a copy of that is the same layer then.
    pub fn write_out(&mut self) -> io::Result<()> {
        match self.kept {
            true => self.sync(),
            false => self.bitmap.write(&self.file, BITMAP),
        }
    }

    /// Writes bits to the file, once their blocks are there.
    fn commit(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.bitmap.is_dirty() {
            self.bitmap.write(&self.file, BITMAP)?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Calls `change` with `range` of the disk, and marks its blocks as the layer's.
    fn change(
        &mut self,
        base: &File,
        range: Range<u64>,
        change: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let block = self.header.block;
        let blocks = self.blocks(&range);
        // Blocks of which only a part changes get the rest from the base.
        let first_is_cut = !range.start.is_multiple_of(block);
        let last_is_cut = !range.end.is_multiple_of(block) && range.end != self.header.len;
        if first_is_cut || last_is_cut && blocks.end - blocks.start == 1 {
            self.copy_up(base, blocks.start)?;
        }
        if last_is_cut && blocks.end - blocks.start > 1 {
            self.copy_up(base, blocks.end - 1)?;
        }
        change(&self.file)?;
        self.bitmap.insert(blocks);
        Ok(())
    }

    /// Copies a block from `base` that is not in the layer.
    fn copy_up(&self, base: &File, block: u64) -> io::Result<()> {
        if self.bitmap.has(block) {
            return Ok(());
        }
        let offset = block * self.header.block;
        let mut bytes = vec![0; self.header.block.min(self.header.len - offset) as usize];
        base.read_exact_at(&mut bytes, offset)?;
        self.file.write_all_at(&bytes, self.place(offset))
    }

    /// Whether the start of `range` is in the layer, and up to where in `range`.
    fn run(&self, range: Range<u64>) -> (bool, u64) {
        let mut block = range.start / self.header.block;
        let ours = self.bitmap.has(block);
        while block * self.header.block < range.end && self.bitmap.has(block) == ours {
            block += 1;
        }
        (ours, range.end.min(block * self.header.block))
    }
}

impl Drop for Layer {
    /// Flushes, as a disk does when its machine is turned off or reset in good order.
    fn drop(&mut self) {
        if let Err(error) = self.write_out()
            && !self.loss_logged.swap(true, Ordering::SeqCst)
        {
            log::error!("overlay: what was written last is lost: {error}");
        }
    }
}

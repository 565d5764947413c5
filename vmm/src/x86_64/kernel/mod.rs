//! What file is this kernel, and how does it get into guest memory?

pub mod cache;
pub mod unpack;

mod bzimage;
mod elf;
mod kaslr;
#[cfg(test)]
mod pack;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use linux_loader::bootparam::setup_header;

use crate::config::{KernelEntry, Size};
use crate::layout;
use crate::memory::GuestRam;

/// How the boot CPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit Linux boot protocol, at this address (Documentation/arch/x86/boot.rst).
    Linux64(u64),
    /// Xen PVH, 32-bit, at this address (xen/docs/misc/pvh.pandoc).
    Pvh(u64),
}

/// A kernel in guest memory.
pub struct Kernel {
    /// Where it starts.
    pub entry: Entry,
    /// The first address after all that it needs to start.
    pub end: u64,
    /// Its setup header; for an ELF, one with what the protocol asks of a loader.
    pub header: setup_header,
}

/// How a kernel is to be loaded.
#[derive(Clone, Copy)]
pub struct Options {
    /// Where RAM below 4 GiB ends.
    pub low_ram_end: u64,
    /// Who unpacks a bzImage.
    pub entry: KernelEntry,
    /// Whether unpacked kernels are kept for the next time.
    pub cache: bool,
    /// Whether a kernel that can be anywhere in its address space is put somewhere random.
    pub kaslr: bool,
}

const HDRS_OFFSET: u64 = 0x202;
const SETUP_MAGIC: u32 = 0x5372_6448; // "HdrS"

/// Loads the kernel in `path` into `ram`.
pub fn load(path: &Path, ram: &GuestRam, options: &Options) -> Result<Kernel> {
    let named = || format!("kernel {}", path.display());
    let (file, len) = open(path).with_context(named)?;
    let kernel = match identify(&file).with_context(named)? {
        Format::Elf => elf::load(&elf::Image::plain(file, len), ram, options),
        Format::BzImage => bzimage::load(&file, len, ram, options),
    };
    kernel.with_context(named)
}

/// Opens a file to be loaded; returns its length, too.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    // O_NONBLOCK: a named pipe is to be refused, not to be waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.context("cannot open it")?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "not a regular file: name one");
    Ok((file, metadata.len()))
}

enum Format {
    Elf,
    BzImage,
}

fn identify(file: &File) -> Result<Format> {
    let mut start = [0; HDRS_OFFSET as usize + 4];
    let len = file.read_at(&mut start, 0).context("cannot read it")?;
    let start = &start[..len];
    if start.starts_with(b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if start.get(HDRS_OFFSET as usize..) == Some(SETUP_MAGIC.to_le_bytes().as_slice()) {
        return Ok(Format::BzImage);
    }
    let compressed =
        [(b"\x1f\x8b".as_slice(), "gzip"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    match compressed.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, name)) => bail!("a {name} file, unpack it first"),
        None => bail!("neither a bzImage (vmlinuz) nor an ELF (vmlinux) for x86-64"),
    }
}

fn truncated() -> anyhow::Error {
    anyhow!("shorter than its headers say: truncated, fetch it again")
}

fn needs_ram(end: u64) -> anyhow::Error {
    if end > layout::GAP_START {
        return anyhow!("asks to be loaded up to {end:#x}, where no --mem has RAM: is it damaged?");
    }
    let least = Size::new(end.next_multiple_of(layout::MIB));
    anyhow!("does not fit in guest memory: use --mem {least} or more")
}

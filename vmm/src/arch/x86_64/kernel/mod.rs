//! What file is this kernel, and how does it get into guest memory?

mod bzimage;
pub mod elf;
mod kaslr;
mod params;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use linux_loader::bootparam::setup_header;

use crate::config::{KernelEntry, Size};
use crate::layout;
use crate::memory::GuestRam;
use crate::memory::loadable::Loadable;

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
    /// Whether the kernel finds devices by ACPI. One that unpacks itself is assumed to: its file does not say.
    pub acpi: bool,
}

/// How a kernel is to be loaded.
#[derive(Clone, Copy)]
pub struct Options {
    /// Where RAM below 4 GiB ends.
    pub low_ram_end: u64,
    /// Who unpacks a bzImage.
    pub entry: KernelEntry,
    /// Whether a kernel that can be anywhere in its address space is put somewhere random.
    pub kaslr: bool,
}

const HDRS_OFFSET: u64 = 0x202;
const SETUP_MAGIC: u32 = 0x5372_6448; // "HdrS"

/// Keeps unpacked kernels for the next time, outside of the machine. Called from the thread that loads the kernel.
pub trait KernelStore: Send + Sync {
    /// The image that was kept of the bzImage in `bzimage`, if there is one. Its checksums are still to be checked.
    fn find(&self, bzimage: &File) -> Option<elf::Image>;
    /// The image that `find` returned is damaged.
    fn forget(&self, bzimage: &File);
    /// Has `unpack` unpack the bzImage into a new file, and keeps that. An error means that it is not kept.
    fn keep(&self, bzimage: &File, unpack: &mut Unpack) -> Result<Kept>;
}

/// Unpacks a kernel into the file.
pub type Unpack<'a> = dyn FnMut(File) -> Result<elf::Image> + 'a;

/// A kernel that was unpacked and kept.
pub struct Kept {
    /// The image, of which no checksum has to be checked: it was made just now.
    pub image: elf::Image,
    /// What was kept, open for the next time.
    pub kept: Option<elf::Image>,
}

/// A kernel's file, and what it was unpacked to.
pub struct KernelFile {
    file: Loadable,
    store: Option<Box<dyn KernelStore>>,
    unpacked: Unpacked,
}

/// The store's copy of an unpacked kernel, open for the next time. It is looked for once, at the first load:
/// `None` means that there is none.
type Unpacked = OnceLock<Option<elf::Image>>;

impl KernelFile {
    /// The kernel in `file`. With a `store`, what it unpacks to is kept there.
    pub fn new(file: Loadable, store: Option<Box<dyn KernelStore>>) -> Self {
        Self { file, store, unpacked: OnceLock::new() }
    }

    /// Whether it is Linux, as far as its headers show.
    pub fn is_linux(&self) -> bool {
        let Loadable { file, len, .. } = &self.file;
        match (identify(file), file.try_clone()) {
            (Ok(Format::BzImage), _) => bzimage::is_linux(file),
            (Ok(Format::Elf), Ok(file)) => elf::Image::plain(file, *len).is_linux(),
            _ => false,
        }
    }
}

/// Loads `kernel` into `ram`. From the second time on it opens nothing.
pub fn load(kernel: &KernelFile, ram: &GuestRam, options: &Options) -> Result<Kernel> {
    let Loadable { file, len, path } = &kernel.file;
    let named = || format!("kernel {}", path.display());
    let loaded = match identify(file).with_context(named)? {
        Format::Elf => {
            let file = file.try_clone().with_context(named)?;
            elf::load(&elf::Image::plain(file, *len), ram, options)
        }
        Format::BzImage => bzimage::load(kernel, ram, options),
    };
    loaded.with_context(named)
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

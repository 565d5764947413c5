//! What file is this kernel, and how does it get into guest memory?

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use crate::config::Size;
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

const HDRS_OFFSET: u64 = 0x202;
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const SETUP_MAGIC: u32 = 0x5372_6448; // "HdrS"
const ENTRY_64_OFFSET: u64 = 0x200;
/// Boot protocol 2.12 brought `xloadflags`, which tells a kernel with a 64-bit entry.
const PROTOCOL_64: u16 = 0x020c;

/// Loads the kernel in `path` into `ram`. `low_ram_end` is where RAM below 4 GiB ends.
pub fn load(path: &Path, ram: &GuestRam, low_ram_end: u64) -> Result<Kernel> {
    let named = || format!("kernel {}", path.display());
    let (mut file, len) = open(path).with_context(named)?;
    let kernel = match identify(&mut file).with_context(named)? {
        Format::Elf => load_elf(&mut file, ram, low_ram_end),
        Format::BzImage => load_bzimage(&mut file, len, ram, low_ram_end),
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

fn identify(file: &mut File) -> Result<Format> {
    let mut start = Vec::new();
    file.take(HDRS_OFFSET + 4).read_to_end(&mut start).context("cannot read it")?;
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

fn load_bzimage(file: &mut File, size: u64, ram: &GuestRam, low_ram_end: u64) -> Result<Kernel> {
    let mut header = setup_header::default();
    file.seek(SeekFrom::Start(SETUP_HEADER_OFFSET))?;
    file.read_exact(header.as_mut_slice()).map_err(|_| truncated())?;
    ensure!(
        header.version >= PROTOCOL_64 && header.xloadflags & XLF_KERNEL_64 != 0,
        "a bzImage without a 64-bit entry: use an x86-64 kernel, 3.8 or later"
    );
    // Zero means 4, for the sake of ancient kernels.
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let setup = (u64::from(sectors) + 1) * 512;
    // `syssize` counts the protected-mode part in 16-byte units.
    ensure!(size >= setup + u64::from(header.syssize) * 16, truncated());
    let load = header.pref_address;
    let end = load.saturating_add(u64::from(header.init_size));
    ensure!(load >= layout::KERNEL_MIN, "its load address {load:#x} is below 1 MiB");
    ensure!(end <= low_ram_end, needs_ram(end));
    BzImage::load(ram, Some(GuestAddress(load)), file, None)
        .map_err(|error| anyhow!("cannot load it: {error}"))?;
    Ok(Kernel { entry: Entry::Linux64(load + ENTRY_64_OFFSET), end, header })
}

fn load_elf(file: &mut File, ram: &GuestRam, low_ram_end: u64) -> Result<Kernel> {
    file.rewind()?;
    let mut ehdr = Elf64_Ehdr::default();
    file.read_exact(ehdr.as_mut_slice()).map_err(|_| truncated())?;
    ensure!(ehdr.e_ident[4] == 2, "a 32-bit ELF: use an x86-64 kernel");
    ensure!(
        u32::from(ehdr.e_machine) == u32::from(EM_X86_64),
        "an ELF for another machine (e_machine {}): use an x86-64 kernel",
        ehdr.e_machine
    );
    let segments = load_segments(file, &ehdr)?;
    let end = segments.iter().map(|s| s.p_paddr.saturating_add(s.p_memsz)).max();
    let end = end.context("an ELF with nothing to load: is it a kernel?")?;
    for segment in &segments {
        ensure!(
            segment.p_paddr >= layout::KERNEL_MIN,
            "an ELF that loads at {:#x}, below 1 MiB: is it a kernel?",
            segment.p_paddr
        );
    }
    ensure!(end <= low_ram_end, needs_ram(end));
    let loaded = Elf::load(ram, None, file, None)
        .map_err(|error| anyhow!("cannot load it, is it truncated? ({error})"))?;
    // A higher-half entry, or one that is the PVH entry, is not the 64-bit Linux entry.
    let in_memory =
        segments.iter().any(|s| (s.p_paddr..s.p_paddr + s.p_memsz).contains(&ehdr.e_entry));
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(pvh) if !in_memory || pvh.0 == ehdr.e_entry => {
            Entry::Pvh(pvh.0)
        }
        _ if in_memory => Entry::Linux64(ehdr.e_entry),
        _ => bail!("an ELF whose entry {:#x} is not in a segment that it loads", ehdr.e_entry),
    };
    Ok(Kernel { entry, end, header: header_for_elf() })
}

/// The program headers of segments to load.
fn load_segments(file: &mut File, ehdr: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>> {
    ensure!(
        usize::from(ehdr.e_phentsize) == size_of::<Elf64_Phdr>(),
        "an ELF with program headers of {} bytes: is it damaged?",
        ehdr.e_phentsize
    );
    file.seek(SeekFrom::Start(ehdr.e_phoff)).map_err(|_| truncated())?;
    let mut segments = Vec::new();
    for _ in 0..ehdr.e_phnum {
        let mut phdr = Elf64_Phdr::default();
        file.read_exact(phdr.as_mut_slice()).map_err(|_| truncated())?;
        if phdr.p_type == PT_LOAD && phdr.p_memsz > 0 {
            segments.push(phdr);
        }
    }
    Ok(segments)
}

/// What the boot protocol's 64-bit entry reads of the setup header.
fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: SETUP_MAGIC,
        version: 0x020f,
        kernel_alignment: 0x100_0000,
        initrd_addr_max: 0x7fff_ffff, // arch/x86/boot/header.S
        cmdline_size: 2047,           // COMMAND_LINE_SIZE, less its terminator
        ..Default::default()
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

//! An ELF kernel (vmlinux, or what a bzImage unpacks to) and its way into guest memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use linux_loader::bootparam::{XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, setup_header};
use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Entry, Kernel, Options, SETUP_MAGIC, kaslr, needs_ram, params, truncated};
use crate::layout;
use crate::memory::GuestRam;
use crate::memory::buffers::Buffers;
use crate::worker;

/// A file that has an ELF kernel from its start, and what follows one in a bzImage's payload:
/// the kernel's relocation table.
pub struct Image {
    file: File,
    len: u64,
    sums: Option<Vec<u64>>,
}

/// What the headers of an ELF say.
#[derive(Debug)]
pub struct Layout {
    /// What is to be loaded, in no particular order; never empty.
    pub segments: Vec<Segment>,
    /// Where the kernel starts.
    pub entry: Entry,
    /// Where the ELF ends in its file.
    pub end: u64,
    /// Virtual addresses of Linux's table of parameters, if a section names it.
    pub params: Option<Range<u64>>,
}

/// Consecutive bytes of the file that go to consecutive addresses of the guest.
#[derive(Debug)]
pub struct Segment {
    /// Where they start in the file.
    pub offset: u64,
    /// Bytes that the file has of it; the rest is zero.
    pub file_len: u64,
    /// Guest physical address of its first byte.
    pub address: u64,
    /// Bytes of memory that it takes.
    pub mem_len: u64,
    /// Virtual address at which the kernel sees that byte.
    pub virtual_address: u64,
}

/// What one thread loads at a time: never more than a huge page of the guest.
struct Piece {
    offset: u64,
    address: u64,
    len: u64,
    sum: Option<u64>,
}

/// The most program headers; Linux has some five.
const MAX_PHDRS: u16 = 256;
const HUGE_PAGE: u64 = 2 << 20;
/// The checksum of a piece that is all zero; others are less than 2^32. What a linker makes of .bss is read by nobody.
const ZERO: u64 = u64::MAX;
/// Bytes that are still in a CPU's own cache when they have been read.
const CACHED: usize = 256 << 10;
/// The most bytes of notes that are looked at; Linux has some 500.
const MAX_NOTES: u64 = 64 << 10;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

impl Image {
    /// A file of the user's: nothing is known about it.
    pub fn plain(file: File, len: u64) -> Self {
        Self { file, len, sums: None }
    }

    /// The first `len` bytes of `file`, which had these [`sums`](Self::sums) when it was made.
    pub fn checked(file: File, len: u64, sums: Vec<u64>) -> Self {
        Self { file, len, sums: Some(sums) }
    }

    /// Bytes of the file that are the image.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Checksums of all that is ever used of it: the layout, each piece, and the relocation table.
    pub fn sums(&self) -> Result<Vec<u64>> {
        let layout = self.layout(layout::GAP_START)?;
        let mut sums = vec![layout.sum()];
        let mut bytes = vec![0; HUGE_PAGE as usize];
        for piece in layout.pieces() {
            let bytes = &mut bytes[..piece.len as usize];
            self.file.read_exact_at(bytes, piece.offset)?;
            sums.push(if is_zero(bytes) { ZERO } else { sum_of(bytes) });
        }
        sums.push(sum_of(&self.relocations(&layout)?));
        Ok(sums)
    }

    /// Whether it is Linux, which has a note with the salt of its build (include/linux/build-salt.h, since 4.18).
    pub fn is_linux(&self) -> bool {
        // The type, LINUX_ELFNOTE_BUILD_SALT, and the name behind it.
        const SALT: &[u8] = b"\0\x01\0\0Linux\0";
        let has_salt = |phdr: &Elf64_Phdr| {
            let mut notes = vec![0; phdr.p_filesz.min(MAX_NOTES) as usize];
            let read = self.file.read_exact_at(&mut notes, phdr.p_offset);
            read.is_ok() && notes.windows(SALT.len()).any(|bytes| bytes == SALT)
        };
        let headers = self.headers();
        headers
            .is_ok_and(|(_, all)| all.iter().any(|phdr| phdr.p_type == PT_NOTE && has_salt(phdr)))
    }

    /// Its headers, if it is an ELF for x86-64.
    fn headers(&self) -> Result<(Elf64_Ehdr, Vec<Elf64_Phdr>)> {
        let mut ehdr = Elf64_Ehdr::default();
        self.file.read_exact_at(ehdr.as_mut_slice(), 0).map_err(|_| truncated())?;
        ensure!(ehdr.e_ident[4] == 2, "a 32-bit ELF: use an x86-64 kernel");
        ensure!(ehdr.e_ident[5] == 1, "a big-endian ELF: use an x86-64 kernel");
        ensure!(
            u32::from(ehdr.e_machine) == u32::from(EM_X86_64),
            "an ELF for another machine (e_machine {}): use an x86-64 kernel",
            ehdr.e_machine
        );
        ensure!(
            usize::from(ehdr.e_phentsize) == size_of::<Elf64_Phdr>(),
            "an ELF with program headers of {} bytes: is it damaged?",
            ehdr.e_phentsize
        );
        ensure!(
            ehdr.e_phnum <= MAX_PHDRS,
            "an ELF with {} program headers: is it damaged?",
            ehdr.e_phnum
        );
        let mut phdrs = vec![Elf64_Phdr::default(); ehdr.e_phnum.into()];
        for (phdr, index) in phdrs.iter_mut().zip(0u64..) {
            let at = index * size_of::<Elf64_Phdr>() as u64;
            let at = ehdr.e_phoff.checked_add(at).with_context(truncated)?;
            self.file.read_exact_at(phdr.as_mut_slice(), at).map_err(|_| truncated())?;
        }
        Ok((ehdr, phdrs))
    }

    /// What its headers say, if it is a kernel for x86-64 that `ram_end` bytes of RAM have room for.
    fn layout(&self, ram_end: u64) -> Result<Layout> {
        let (ehdr, phdrs) = self.headers()?;
        let segments = self.segments(&phdrs, ram_end)?;
        let pvh = phdrs.iter().filter(|phdr| phdr.p_type == PT_NOTE);
        let pvh = pvh.filter_map(|phdr| self.pvh_entry(phdr)).next();
        let entry = entry(ehdr.e_entry, pvh, &segments)?;
        // Linkers put the section headers last.
        let headers = u64::from(ehdr.e_shnum) * u64::from(ehdr.e_shentsize);
        let ends = segments.iter().map(|s| s.offset + s.file_len);
        let end = ends.fold(ehdr.e_shoff.saturating_add(headers), u64::max);
        Ok(Layout { segments, entry, end, params: params::find(&self.file, &ehdr) })
    }

    fn segments(&self, phdrs: &[Elf64_Phdr], ram_end: u64) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for phdr in phdrs.iter().filter(|phdr| phdr.p_type == PT_LOAD && phdr.p_memsz > 0) {
            ensure!(
                phdr.p_paddr >= layout::KERNEL_MIN,
                "an ELF that loads at {:#x}, below 1 MiB: is it a kernel?",
                phdr.p_paddr
            );
            let end = phdr.p_paddr.saturating_add(phdr.p_memsz);
            ensure!(end <= ram_end, needs_ram(end));
            let end = phdr.p_offset.checked_add(phdr.p_filesz);
            ensure!(end.is_some_and(|end| end <= self.len), truncated());
            ensure!(phdr.p_filesz <= phdr.p_memsz, "an ELF with more of a segment than it loads");
            segments.push(Segment {
                offset: phdr.p_offset,
                file_len: phdr.p_filesz,
                address: phdr.p_paddr,
                mem_len: phdr.p_memsz,
                virtual_address: phdr.p_vaddr,
            });
        }
        ensure!(!segments.is_empty(), "an ELF with nothing to load: is it a kernel?");
        // So that what is loaded is no more than RAM, into memory that is zero.
        let mut sorted: Vec<_> = segments.iter().map(|s| (s.address, s.mem_len)).collect();
        sorted.sort_unstable();
        let overlap = sorted.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0);
        ensure!(!overlap, "an ELF with segments that overlap: is it damaged?");
        Ok(segments)
    }

    /// The PVH entry in these notes, if any (xen/include/public/elfnote.h).
    fn pvh_entry(&self, phdr: &Elf64_Phdr) -> Option<u64> {
        let mut notes = vec![0; phdr.p_filesz.min(MAX_NOTES) as usize];
        self.file.read_exact_at(&mut notes, phdr.p_offset).ok()?;
        // In units of 4 bytes, as Linux, Xen and binutils lay them out whatever `p_align` is: a linker takes the largest
        // of all that it merges. Units of 8 are what the ELF specification has for 64 bits.
        let units = if phdr.p_align == 8 { &[4, 8][..] } else { &[4] };
        units.iter().find_map(|unit| find_pvh_entry(&notes, *unit))
    }

    /// What follows the ELF; empty if that is nothing or no table of relocations.
    fn relocations(&self, layout: &Layout) -> Result<Vec<u8>> {
        let len = self.len.saturating_sub(layout.end);
        let len = if len > kaslr::MAX_TABLE { 0 } else { len };
        let mut table = vec![0; usize::try_from(len)?];
        self.file.read_exact_at(&mut table, layout.end).context("cannot read it")?;
        Ok(table)
    }

    /// Loads `piece` to where `ram` is zero, which it stays if the piece is: a third of a kernel is .bss and the like.
    fn load(&self, piece: &Piece, ram: &GuestRam) -> Result<()> {
        let is_zero = match piece.sum {
            Some(sum) => sum == ZERO,
            None => self.is_zero(piece).context("cannot read it")?,
        };
        if is_zero {
            return Ok(());
        }
        let to = ram.get_slice(GuestAddress(piece.address), piece.len as usize)?;
        let mut hasher = crc32fast::Hasher::new();
        for start in (0..to.len()).step_by(CACHED) {
            let part = to.subslice(start, CACHED.min(to.len() - start))?;
            let offset = piece.offset + start as u64;
            Buffers::from(part).read_from_file(&self.file, offset).context("cannot read it")?;
            if piece.sum.is_some() {
                add_to_sum(&mut hasher, part)?;
            }
        }
        let sum = u64::from(hasher.finalize());
        ensure!(piece.sum.is_none_or(|known| known == sum), "damaged at {:#x}", piece.offset);
        Ok(())
    }

    fn is_zero(&self, piece: &Piece) -> io::Result<bool> {
        let mut bytes = vec![0; CACHED];
        let (mut at, mut len) = (0, 4096); // other pieces mostly show it at once
        while at < piece.len {
            let part = &mut bytes[..len.min((piece.len - at) as usize)];
            self.file.read_exact_at(part, piece.offset + at)?;
            if !is_zero(part) {
                return Ok(false);
            }
            at += part.len() as u64;
            len = CACHED;
        }
        Ok(true)
    }
}

impl Layout {
    /// The first address of a segment.
    pub fn memory_start(&self) -> u64 {
        self.segments.iter().map(|s| s.address).min().unwrap_or_default()
    }

    /// The first address after all segments.
    pub fn memory_end(&self) -> u64 {
        self.segments.iter().map(|s| s.address + s.mem_len).max().unwrap_or_default()
    }

    /// The guest physical address of a virtual address, if that is in a segment.
    pub fn physical(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment.virtual_address)?;
            (offset < segment.mem_len).then(|| segment.address + offset)
        })
    }

    fn sum(&self) -> u64 {
        sum_of(format!("{self:?}").as_bytes())
    }

    /// All segments, split where huge pages of the guest meet.
    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for segment in &self.segments {
            let mut done = 0;
            while done < segment.file_len {
                let address = segment.address + done;
                let page_end = (address + 1).next_multiple_of(HUGE_PAGE);
                let len = (page_end - address).min(segment.file_len - done);
                pieces.push(Piece { offset: segment.offset + done, address, len, sum: None });
                done += len;
            }
        }
        pieces
    }
}

/// Loads `image` into `ram`, which is zero, and is so again after an error, as a damaged image is.
pub fn load(image: &Image, ram: &GuestRam, options: &Options) -> Result<Kernel> {
    let layout = image.layout(options.low_ram_end)?;
    let loaded = load_layout(image, &layout, ram, options);
    if loaded.is_err() {
        layout.pieces().iter().try_for_each(|piece| clear(piece, ram))?;
    }
    loaded
}

fn load_layout(
    image: &Image,
    layout: &Layout,
    ram: &GuestRam,
    options: &Options,
) -> Result<Kernel> {
    let mut pieces = layout.pieces();
    let mut table_sum = None;
    if let Some(sums) = &image.sums {
        ensure!(sums.len() == pieces.len() + 2, "{} checksums, not its own", sums.len());
        ensure!(sums[0] == layout.sum(), "damaged headers");
        pieces.iter_mut().zip(&sums[1..]).for_each(|(piece, sum)| piece.sum = Some(*sum));
        table_sum = sums.last();
    }
    worker::parallel_for_each(&pieces, |piece| image.load(piece, ram))?;
    let acpi = params::have_acpi(ram, layout);
    let mut header = header();
    if options.kaslr && matches!(layout.entry, Entry::Linux64(_)) {
        let table = image.relocations(layout)?;
        ensure!(table_sum.is_none_or(|sum| *sum == sum_of(&table)), "damaged relocations");
        header.loadflags = kaslr::randomize(ram, layout, &table)?;
    }
    Ok(Kernel { entry: layout.entry, end: layout.memory_end(), header, acpi })
}

/// Makes the memory of `piece` zero.
fn clear(piece: &Piece, ram: &GuestRam) -> Result<()> {
    let zeroes = vec![0; piece.len as usize];
    Ok(ram.write_slice(&zeroes, GuestAddress(piece.address))?)
}

/// Whether the first byte is zero and each is like the next: a comparison of memory, which is fast.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

fn sum_of(bytes: &[u8]) -> u64 {
    crc32fast::hash(bytes).into()
}

fn add_to_sum(hasher: &mut crc32fast::Hasher, part: VolatileSlice) -> Result<()> {
    // glibc copies this much with vectors, and more with one long instruction, which is dear in emulators.
    let mut bytes = [0; 2 << 10];
    for start in (0..part.len()).step_by(bytes.len()) {
        let len = part.offset(start)?.copy_to(&mut bytes[..]);
        hasher.update(&bytes[..len]);
    }
    Ok(())
}

/// A higher-half entry, or one that is the PVH entry, is not the 64-bit Linux entry.
fn entry(entry: u64, pvh: Option<u64>, segments: &[Segment]) -> Result<Entry> {
    let in_memory = segments.iter().any(|s| (s.address..s.address + s.mem_len).contains(&entry));
    match pvh {
        Some(pvh) if !in_memory || pvh == entry => Ok(Entry::Pvh(pvh)),
        _ if in_memory => Ok(Entry::Linux64(entry)),
        _ => bail!("an ELF whose entry {entry:#x} is not in a segment that it loads"),
    }
}

/// Goes through notes: three words (lengths of name and contents, type), name, contents, in units of `unit` bytes.
fn find_pvh_entry(mut notes: &[u8], unit: usize) -> Option<u64> {
    loop {
        let word = |index: usize| {
            let bytes = notes.get(index * 4..index * 4 + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        let (name_len, len) = (word(0)? as usize, word(1)? as usize);
        let start = (12 + name_len).next_multiple_of(unit);
        let contents = notes.get(start..start + len)?;
        if word(2) == Some(XEN_ELFNOTE_PHYS32_ENTRY) && notes.get(12..16) == Some(b"Xen\0") {
            let mut entry = [0; 8];
            let given = contents.len().min(8);
            entry[..given].copy_from_slice(&contents[..given]);
            return Some(u64::from_le_bytes(entry));
        }
        notes = notes.get((start + len).next_multiple_of(unit)..)?;
    }
}

/// What the boot protocol's 64-bit entry reads of the setup header.
fn header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: SETUP_MAGIC,
        version: 0x020f,
        kernel_alignment: 0x100_0000,
        xloadflags: XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
        initrd_addr_max: 0x7fff_ffff, // arch/x86/boot/header.S
        cmdline_size: 2047,           // COMMAND_LINE_SIZE, less its terminator
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;

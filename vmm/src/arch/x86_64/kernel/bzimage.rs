//! A bzImage: unpacked here, or handed to its own decompressor (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Once;

use anyhow::{Context, Result, anyhow, ensure};
use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use rustix::fs::MemfdFlags;
use vm_memory::{ByteValued, GuestAddress};

use super::{Entry, Kernel, KernelFile, KernelStore, Options, elf, needs_ram, truncated};
use crate::config::KernelEntry;
use crate::layout;
use crate::memory::GuestRam;

const SETUP_HEADER_OFFSET: u64 = 0x1f1;
const ENTRY_64_OFFSET: u64 = 0x200;
/// Boot protocol 2.12 brought `xloadflags`, which marks a kernel with a 64-bit entry.
const PROTOCOL_64: u16 = 0x020c;

/// Loads the bzImage in `kernel`.
pub fn load(kernel: &KernelFile, ram: &GuestRam, options: &Options) -> Result<Kernel> {
    let (file, size) = (&kernel.file.file, kernel.file.len);
    let mut header = setup_header::default();
    file.read_exact_at(header.as_mut_slice(), SETUP_HEADER_OFFSET).map_err(|_| truncated())?;
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
    ensure!(end <= options.low_ram_end, needs_ram(end));
    if options.entry == KernelEntry::Direct {
        let payload = Payload::new(file, setup, size, &header);
        match payload.and_then(|payload| payload.load(kernel, ram, options)) {
            Ok(kernel) => {
                let flags = header.loadflags | kernel.header.loadflags;
                return Ok(Kernel {
                    header: setup_header { loadflags: flags, ..header },
                    ..kernel
                });
            }
            Err(error) => {
                // Once: a guest may reset for ever.
                static LOGGED: Once = Once::new();
                let what = "the kernel is left to unpack itself, which may fail";
                match header.payload_length {
                    // It is a program of its own.
                    0 => log::debug!("{what}: {error:#}"),
                    _ => LOGGED.call_once(|| log::warn!("{what}: {error:#}")),
                }
            }
        }
    }
    BzImage::load(ram, Some(GuestAddress(load)), &mut &*file, None)
        .map_err(|error| anyhow!("cannot load it: {error}"))?;
    Ok(Kernel { entry: Entry::Linux64(load + ENTRY_64_OFFSET), end, header, acpi: true })
}

/// Whether the bzImage names the version of Linux that it is: only what is made by hand does not.
pub fn is_linux(file: &File) -> bool {
    let mut header = setup_header::default();
    let read = file.read_exact_at(header.as_mut_slice(), SETUP_HEADER_OFFSET);
    read.is_ok() && header.kernel_version != 0
}

/// The compressed kernel in a bzImage.
struct Payload<'a> {
    /// The whole bzImage.
    file: &'a File,
    offset: u64,
    len: u64,
    unpacked_len: u64,
}

impl<'a> Payload<'a> {
    fn new(file: &'a File, setup: u64, size: u64, header: &setup_header) -> Result<Self> {
        let offset = setup + u64::from(header.payload_offset);
        let len = u64::from(header.payload_length);
        let end = offset + len;
        ensure!(len > 4 && end <= size, "a payload of {len} bytes at {offset:#x}");
        let mut unpacked_len = [0; 4];
        file.read_exact_at(&mut unpacked_len, end - 4)?;
        let unpacked_len = u64::from(u32::from_le_bytes(unpacked_len));
        // Its own decompressor has no more room either.
        let room = u64::from(header.init_size);
        ensure!(unpacked_len <= room, "a payload of {unpacked_len} bytes, more than its init_size");
        Ok(Self { file, offset, len, unpacked_len })
    }

    /// Loads what the payload unpacks to: from the store, else through it.
    fn load(&self, of: &KernelFile, ram: &GuestRam, options: &Options) -> Result<Kernel> {
        let stored = match of.unpacked.get() {
            Some(known) => known.as_ref().and_then(|image| elf::load(image, ram, options).ok()),
            None => {
                let store = of.store.as_deref();
                let loaded = store.and_then(|store| self.load_stored(store, ram, options));
                let (kernel, image) = loaded.unzip();
                of.unpacked.get_or_init(|| image.flatten());
                kernel
            }
        };
        match stored {
            Some(kernel) => Ok(kernel),
            None => elf::load(&self.unpack_to_memory()?, ram, options),
        }
    }

    /// Loads it for the first time; returns what is in the store, too. `None` if that can neither have it nor keep it.
    fn load_stored(
        &self,
        store: &dyn KernelStore,
        ram: &GuestRam,
        options: &Options,
    ) -> Option<(Kernel, Option<elf::Image>)> {
        if let Some(image) = store.find(self.file) {
            match elf::load(&image, ram, options) {
                Ok(kernel) => return Some((kernel, Some(image))),
                Err(error) => {
                    log::debug!("kernel store: {error:#}");
                    store.forget(self.file);
                }
            }
        }
        let kept = store.keep(self.file, &mut |to| self.unpack(to));
        let loaded = kept.and_then(|kept| Ok((elf::load(&kept.image, ram, options)?, kept.kept)));
        loaded
            .inspect_err(|error| log::debug!("kernel store: cannot keep this kernel: {error:#}"))
            .ok()
    }

    fn unpack_to_memory(&self) -> Result<elf::Image> {
        let memory = rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC);
        self.unpack(File::from(memory.context("no memory to unpack it to")?))
    }

    fn unpack(&self, mut to: File) -> Result<elf::Image> {
        let mut from = self.file;
        from.seek(SeekFrom::Start(self.offset))?;
        unpack::unpack(&mut from, self.len, &mut to, self.unpacked_len)?;
        Ok(elf::Image::plain(to, self.unpacked_len))
    }
}

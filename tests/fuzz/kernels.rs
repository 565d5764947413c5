//! Kernel files: bzImage, ELF, and each way in which a payload can be compressed.

use std::fs::File;
use std::io::Cursor;
use std::sync::LazyLock;

use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use tinyvmm::arch::kernel::{Entry, KernelFile};
use tinyvmm::arch::{boot, cmdline};
use tinyvmm::config::{KernelEntry, MachineConfig, Mem, Size};
use tinyvmm::layout;
use tinyvmm::memory::loadable::Loadable;
use tinyvmm::memory::{self, GuestRam};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::files::MemoryFile;
use crate::input::Input;
use crate::pack::FORMATS;

const RAM: u64 = 16 << 20;
/// The physical and virtual address of the seeds' kernels (`__START_KERNEL_map`).
const START: u64 = 2 << 20;
const MAP: u64 = 0xffff_ffff_8000_0000;

static MEMORY: LazyLock<GuestRam> = LazyLock::new(|| memory::of_ranges(&[(0, RAM)]));

/// A byte of options, then a kernel, bzImage or ELF.
pub fn boot(data: &[u8]) {
    let mut input = Input(data);
    let Some(options) = input.u8() else { return };
    let file = MemoryFile::new(input.0);
    let mem = Mem::fixed(Size::new(RAM));
    let mut config = MachineConfig { mem, ..MachineConfig::default() };
    let open = || Loadable::new(File::open(file.path()).unwrap(), file.path()).unwrap();
    let kernel = KernelFile::new(open(), None);
    let initrd =
        (options & 1 != 0).then(|| boot::Initrd { file: open(), prefix: b"before it".into() });
    config.cmdline = (options & 2 != 0).then(|| "nokaslr".into());
    if options & 4 != 0 {
        config.kernel_entry = KernelEntry::Decompress;
    }
    let booted = boot::load(&config, &kernel, initrd.as_ref(), &MEMORY);
    if let Ok(kernel) = booted {
        if let Entry::Linux64(at) = kernel.entry {
            assert!((layout::KERNEL_MIN..RAM + 0x200).contains(&at), "entry at {at:#x}");
        }
        // The machine's own tables are below 1 MiB, where no kernel is loaded.
        let below: u64 = MEMORY.read_obj(GuestAddress(layout::RESET_VECTOR + 8)).unwrap();
        assert_eq!(below, 0);
        let line = cmdline::of(&config);
        let mut found = vec![0; line.len()];
        MEMORY.read_slice(&mut found, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!(found, line.as_bytes());
    }
    memory::discard(&MEMORY, false).unwrap();
}

/// The size that the payload is to have, 3 bytes; then the payload.
pub fn unpack(data: &[u8]) {
    let mut input = Input(data);
    let (Some(low), Some(high)) = (input.u16(), input.u8()) else { return };
    let size = u64::from(low) | u64::from(high) << 16;
    let mut out = Vec::new();
    let done = unpack::unpack(&mut Cursor::new(input.0), input.0.len() as u64, &mut out, size);
    assert!(out.len() as u64 <= size + 1, "{} bytes instead of {size}", out.len());
    assert!(done.is_err() || out.len() as u64 == size);
}

pub fn payloads() -> Vec<Vec<u8>> {
    let contents: [Vec<u8>; 3] = [b"x".into(), vec![7; 70_000], elf(false, &[])];
    let packed = |data: &Vec<u8>| {
        let size = (data.len() as u32).to_le_bytes();
        FORMATS.map(|pack| [&size[..3], &pack(data)].concat())
    };
    contents.iter().flat_map(packed).collect()
}

/// A kernel of one segment with code and notes, and a relocation table after it.
fn elf(pvh: bool, table: &[u32]) -> Vec<u8> {
    let note: [u32; 5] = [4, 8, 18, u32::from_le_bytes(*b"Xen\0"), START as u32];
    let note: Vec<u8> = note.iter().flat_map(|word| word.to_le_bytes()).chain([0; 4]).collect();
    let contents = 64 + 2 * 56;
    let code: Vec<u8> = (0..=255).collect();
    let ehdr = Elf64_Ehdr {
        e_ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        e_machine: EM_X86_64,
        e_entry: START,
        e_phoff: 64,
        e_phentsize: 56,
        e_phnum: 1 + u16::from(pvh),
        ..Default::default()
    };
    let segment = |kind, offset: usize, len: usize| Elf64_Phdr {
        p_type: kind,
        p_offset: offset as u64,
        p_paddr: START,
        p_vaddr: MAP + START,
        p_filesz: len as u64,
        p_memsz: 0x2000,
        p_align: 4,
        ..Default::default()
    };
    let load = segment(PT_LOAD, contents, code.len() + note.len());
    let notes = segment(PT_NOTE, contents + code.len(), note.len());
    let table: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
    [ehdr.as_slice(), load.as_slice(), notes.as_slice(), &code, &note, &table].concat()
}

/// Relocations as Linux has them, before and since 6.15.
fn tables() -> [Vec<u32>; 3] {
    let site = |at: u64| (MAP + START + at) as u32;
    [vec![], vec![0, site(0), site(8), 0, site(32), 0, site(64)], vec![0, site(16), 0, site(80)]]
}

/// A kernel whose sections say that its code is a table of parameters, of which the first is ACPI's.
fn with_parameters() -> Vec<u8> {
    let mut file = elf(false, &[]);
    let code = 64 + 2 * 56;
    file[code..code + 8].copy_from_slice(&(MAP + START + 40).to_le_bytes());
    file[code + 40..code + 45].copy_from_slice(b"acpi.");
    let names = file.len() as u64;
    file.extend(b"\0__param\0");
    let headers = file.len() as u64;
    // sh_name, sh_flags, sh_addr, sh_offset, sh_size.
    let sections = [[1, 0, MAP + START, code as u64, 256, 0, 0, 0], [0, 0, 0, names, 9, 0, 0, 0]];
    file.extend(sections.as_flattened().iter().flat_map(|word| word.to_le_bytes()));
    file[40..48].copy_from_slice(&headers.to_le_bytes()); // e_shoff
    file[58..64].copy_from_slice(&[64, 0, 2, 0, 1, 0]); // e_shentsize, e_shnum, e_shstrndx
    file
}

fn images() -> Vec<Vec<u8>> {
    let plain = tables().map(|table| elf(false, &table));
    plain.into_iter().chain([elf(true, &[]), with_parameters()]).collect()
}

pub fn elfs() -> Vec<Vec<u8>> {
    images()
        .iter()
        .flat_map(|image| [0, 1, 2].map(|options| [&[options], &image[..]].concat()))
        .collect()
}

pub fn bzimages() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for (index, image) in images().iter().enumerate() {
        for pack in FORMATS {
            files.push([&[index as u8 & 3], &bzimage(&pack(image))[..]].concat());
        }
    }
    files.push([&[5], &bzimage(b"unknown")[..]].concat());
    files
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        syssize: payload.len() as u32 / 16,
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: 1,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 2 << 20,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        payload_length: payload.len() as u32,
        pref_address: START,
        init_size: 0x4000,
        ..Default::default()
    };
    let mut file = vec![0; 0x1f1];
    file.extend(header.as_slice());
    file.resize(1024, 0);
    file.extend(payload);
    file
}

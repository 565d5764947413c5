//! Kernel files of a few instructions.

use tinyvmm::layout;

/// The address at which the code is loaded and entered.
const LOAD: u64 = layout::KERNEL_MIN;

/// An ELF file with `code` as its one segment, entered at its start.
pub fn elf(code: &[u8]) -> Vec<u8> {
    elf_with(code, LOAD, None)
}

/// An ELF file without a 64-bit entry: the second of two notes has the PVH entry. Notes are laid out in units of `unit`
/// bytes, and `align` is what their program header says.
pub fn only_pvh(code: &[u8], align: u64, unit: usize) -> Vec<u8> {
    const PHYS32_ENTRY: u32 = 18; // XEN_ELFNOTE_PHYS32_ENTRY
    let note = |name: &[u8], kind: u32, contents: u32| {
        let mut note = [name.len() as u32, 4, kind].map(u32::to_le_bytes).concat();
        for part in [name, &contents.to_le_bytes()] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(unit), 0);
        }
        note
    };
    let notes = [note(b"Linux\0", 0x101, 0), note(b"Xen\0", PHYS32_ENTRY, LOAD as u32)].concat();
    elf_with(code, 0xffff_ffff_8100_0000, Some((&notes, align)))
}

/// The same kernel as `elf`, but it takes all memory up to this address.
pub fn elf_up_to(end: u64, code: &[u8]) -> Vec<u8> {
    const MEMORY_LEN: usize = 64 + 40; // p_memsz of the only program header
    let mut file = elf(code);
    file[MEMORY_LEN..MEMORY_LEN + 8].copy_from_slice(&(end - LOAD).to_le_bytes());
    file
}

/// An ELF file as `elf` makes it, with Linux's table of parameters, which has one, with this name.
pub fn elf_with_parameter(name: &str, code: &[u8]) -> Vec<u8> {
    const SECTION: usize = 64;
    // What is loaded: the code, the name, the parameter, whose first word is the name's address.
    let mut loaded = [code, name.as_bytes(), &[0; 8]].concat();
    loaded.resize(loaded.len().next_multiple_of(8), 0);
    let table = loaded.len();
    loaded.extend((LOAD + code.len() as u64).to_le_bytes());
    loaded.resize(table + 40, 0);
    let mut file = elf(&loaded);
    // What is not: the sections' names and headers.
    let (names, loaded_at) = (file.len(), file.len() - loaded.len());
    file.extend(b"\0__param\0");
    let headers = file.len();
    file.resize(headers + 3 * SECTION, 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let mut section = |index: usize, name: u32, address: u64, offset: usize, len: u64| {
        let at = headers + index * SECTION;
        put(at, &name.to_le_bytes());
        let words = [address, offset as u64, len].map(u64::to_le_bytes);
        put(at + 16, words.as_flattened());
    };
    section(1, 1, LOAD + table as u64, loaded_at + table, 40);
    section(2, 0, 0, names, 9);
    put(40, &(headers as u64).to_le_bytes()); // e_shoff
    put(58, &[SECTION as u8, 0, 3, 0, 2, 0]); // e_shentsize, e_shnum, e_shstrndx
    file
}

fn elf_with(code: &[u8], entry: u64, notes: Option<(&[u8], u64)>) -> Vec<u8> {
    const EHDR: u64 = 64;
    const PHDR: u64 = 56;
    let phnum = 1 + u64::from(notes.is_some());
    let (notes, align) = notes.unwrap_or_default();
    let notes_at = EHDR + phnum * PHDR;
    let code_at = notes_at + notes.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let push = |file: &mut Vec<u8>, size: usize, value: u64| {
        file.extend(&value.to_le_bytes()[..size]);
    };
    // Elf64_Ehdr from e_type on: an executable for x86-64.
    let ehdr = [(2, 2), (2, 62), (4, 1), (8, entry), (8, EHDR), (8, 0), (4, 0), (2, EHDR)];
    let counts = [(2, PHDR), (2, phnum), (2, 0), (2, 0), (2, 0)];
    ehdr.into_iter().chain(counts).for_each(|(size, value)| push(&mut file, size, value));
    let mut phdr = |kind, offset, address, len: usize, align| {
        [(4, kind), (4, 7), (8, offset), (8, address), (8, address), (8, len as u64)]
            .into_iter()
            .chain([(8, len as u64), (8, align)])
            .for_each(|(size, value)| push(&mut file, size, value));
    };
    phdr(1, code_at, LOAD, code.len(), 8);
    if !notes.is_empty() {
        phdr(4, notes_at, 0, notes.len(), align);
    }
    [&file, notes, code].concat()
}

use super::*;
use crate::config::KernelEntry;
use crate::memory;

const START: u64 = 16 << 20;

/// A segment of `contents`, and nothing after it.
fn image(contents: &[u8]) -> Image {
    let mut ehdr = Elf64_Ehdr { e_machine: 62, e_entry: START, e_phoff: 64, ..Default::default() };
    ehdr.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (ehdr.e_phentsize, ehdr.e_phnum) = (56, 1);
    let len = contents.len() as u64;
    let mut phdr =
        Elf64_Phdr { p_type: PT_LOAD, p_offset: 120, p_paddr: START, ..Default::default() };
    (phdr.p_filesz, phdr.p_memsz) = (len, len);
    let bytes = [ehdr.as_slice(), phdr.as_slice(), contents].concat();
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.write_all_at(&bytes, 0).unwrap();
    Image::plain(file, bytes.len() as u64)
}

#[test]
fn linux_is_known_by_the_salt_of_its_build() {
    let is_linux = |name: &[u8; 8], kind: u32, type_of_segment: u32| {
        let note = [&[6, 4, kind].map(u32::to_le_bytes).concat(), &name[..], b"salt"].concat();
        let image = image(&note);
        image.file.write_all_at(&type_of_segment.to_le_bytes(), 64).unwrap();
        image.is_linux()
    };
    assert!(is_linux(b"Linux\0\0\0", 0x100, PT_NOTE));
    assert!(!is_linux(b"Linux\0\0\0", 0x101, PT_NOTE));
    assert!(!is_linux(b"Minix\0\0\0", 0x100, PT_NOTE));
    assert!(!is_linux(b"Linux\0\0\0", 0x100, PT_LOAD));
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    assert!(!Image::plain(file, 0).is_linux());
}

#[test]
fn what_is_zero_is_not_touched_and_all_else_is_loaded() {
    let mut contents = vec![0; 4 * HUGE_PAGE as usize - 100];
    let last = contents.len() - 1;
    // The second piece is zero, the third only at its start, the last one but for its end.
    for at in [0, 5 << 20, last] {
        contents[at] = 7;
    }
    let options = Options { low_ram_end: 64 << 20, entry: KernelEntry::Direct, kaslr: true };
    let plain = image(&contents);
    let sums = plain.sums().unwrap();
    assert_eq!(sums.iter().filter(|sum| **sum == ZERO).count(), 1);
    let checked = |sums| Image::checked(plain.file.try_clone().unwrap(), plain.len, sums);
    let mut wrong = sums.clone();
    wrong[4] ^= 1;
    for (image, is_good) in [(&plain, true), (&checked(sums), true), (&checked(wrong), false)] {
        let ram = memory::allocate(64 << 20, memory::Backing::default()).unwrap();
        let loaded = load(image, &ram, &options);
        assert_eq!(loaded.is_ok(), is_good, "{:?}", loaded.err());
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let resident = memory::resident_kib(&ram, &smaps);
        assert!(!is_good || resident <= 6 << 10, "{resident} KiB, of three pieces");
        let mut found = vec![0; contents.len()];
        ram.read_slice(&mut found, GuestAddress(START)).unwrap();
        let expected = if is_good { contents.clone() } else { vec![0; contents.len()] };
        assert!(found == expected, "contents");
    }
}

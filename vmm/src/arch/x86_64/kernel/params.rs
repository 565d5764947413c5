//! The parameters that are built into a Linux kernel, which show how it was configured.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::elf::Elf64_Ehdr;
use vm_memory::{Bytes, GuestAddress};

use super::elf::Layout;
use crate::memory::GuestRam;

/// Bytes of a `struct kernel_param`, which starts with its name's address (include/linux/moduleparam.h, Linux 4.1).
const PARAM_LEN: usize = 40;
/// Most bytes of parameters that are read; Debian's kernels have some 36 KiB.
const MAX_PARAMS: u64 = 1 << 20;
/// Most sections of a kernel; Linux has some 70.
const MAX_SECTIONS: u16 = 1024;
/// Most bytes of their names that are read.
const MAX_NAMES: u64 = 64 << 10;

/// An Elf64_Shdr: sh_name and sh_type, sh_flags, sh_addr, sh_offset, sh_size, and what is of no use here.
type Section = [u64; 8];

/// The virtual addresses of the parameters, if the sections of the ELF in `file` name them.
pub fn find(file: &File, ehdr: &Elf64_Ehdr) -> Option<Range<u64>> {
    let is_listed = usize::from(ehdr.e_shentsize) == size_of::<Section>();
    let count = if is_listed && ehdr.e_shnum <= MAX_SECTIONS { ehdr.e_shnum.into() } else { 0 };
    let mut headers = vec![0; count * size_of::<Section>()];
    file.read_exact_at(&mut headers, ehdr.e_shoff).ok()?;
    let words = headers.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    let words: Vec<u64> = words.collect();
    let sections: &[Section] = words.as_chunks().0;
    let [_, _, _, offset, len, ..] = *sections.get(usize::from(ehdr.e_shstrndx))?;
    let mut names = vec![0; len.min(MAX_NAMES) as usize];
    file.read_exact_at(&mut names, offset).ok()?;
    let is_params = |[name, ..]: &&Section| {
        names.get(*name as u32 as usize..).is_some_and(|name| name.starts_with(b"__param\0"))
    };
    let [_, _, address, _, len, ..] = *sections.iter().find(is_params)?;
    Some(address..address.checked_add(len.min(MAX_PARAMS))?)
}

/// Whether the kernel in `ram`, loaded as `layout` says and not yet relocated, has ACPI: then it has
/// `acpi.acpica_version` and other parameters (drivers/acpi/sysfs.c).
pub fn have_acpi(ram: &GuestRam, layout: &Layout) -> bool {
    let Some(params) = &layout.params else { return false };
    let mut table = vec![0; (params.end - params.start) as usize];
    let read = |bytes: &mut [u8], address: u64| {
        let at = layout.physical(address)?;
        ram.read_slice(bytes, GuestAddress(at)).ok()
    };
    let is_acpi = |param: &[u8; PARAM_LEN]| {
        let (Some(name), mut start) = (param.first_chunk(), [0; 5]) else { return false };
        read(&mut start, u64::from_le_bytes(*name)).is_some() && start == *b"acpi."
    };
    read(&mut table, params.start).is_some() && table.as_chunks().0.iter().any(is_acpi)
}

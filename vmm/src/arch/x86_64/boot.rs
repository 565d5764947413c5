//! Puts kernel, initrd, command line and boot parameters into guest memory.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use linux_loader::bootparam::{
    SETUP_RNG_SEED, XLF_CAN_BE_LOADED_ABOVE_4G, boot_e820_entry, boot_params,
};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::cmdline;
use super::kernel::{self, Entry, Kernel, KernelFile};
use crate::config::{MachineConfig, Size};
use crate::memory::GuestRam;
use crate::memory::buffers::Buffers;
use crate::memory::loadable::Loadable;
use crate::{layout, random};

const E820_RAM: u32 = 1;
const XEN_HVM_START_MAGIC: u32 = 0x336e_c578;
/// A bootloader without an assigned number (boot.rst, type_of_loader).
const LOADER_UNDEFINED: u8 = 0xff;
/// Bytes of randomness for the kernel: one ChaCha key, as its own EFI stub passes.
const SEED_LEN: usize = 32;

/// All the firmware there is: `mov al, 0xfe; out 0x64, al; 1: hlt; jmp 1b`, which resets. On
/// hardware-reduced ACPI Linux reboots through EFI and, without it, through the reset vector
/// (arch/x86/kernel/reboot.c); it does not use the FADT's reset register.
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// An initial RAM disk for the kernel.
pub struct Initrd {
    /// The file.
    pub file: Loadable,
    /// What is put before it in guest memory: Linux unpacks one archive after the other. Of a multiple of 4 bytes, or an
    /// initrd that is not compressed is not recognized.
    pub prefix: Vec<u8>,
}

/// An initrd in guest memory.
struct LoadedInitrd {
    address: u64,
    len: u64,
}

/// Loads `kernel` and `initrd` as `config` says.
pub fn load(
    config: &MachineConfig,
    kernel: &KernelFile,
    initrd: Option<&Initrd>,
    ram: &GuestRam,
) -> Result<Kernel> {
    let line = cmdline::of(config);
    let low_ram_end = config.mem.bytes().min(layout::GAP_START);
    let options = kernel::Options {
        low_ram_end,
        entry: config.kernel_entry,
        kaslr: !line.split_ascii_whitespace().any(|word| word == "nokaslr"),
    };
    let mut kernel = kernel::load(kernel, ram, &options)?;
    kernel.acpi &= !cmdline::turns_acpi_off(&line);
    let initrd = match initrd {
        Some(initrd) => Some(load_initrd(initrd, ram, &kernel, config.mem.bytes())?),
        None => None,
    };
    let line = if kernel.acpi { line } else { cmdline::with_devices(config, line) };
    write_cmdline(ram, &line, u64::from(kernel.header.cmdline_size))?;
    ram.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
    match kernel.entry {
        Entry::Linux64(_) => write_zero_page(ram, config, &kernel, initrd.as_ref())?,
        Entry::Pvh(_) => write_start_info(ram, config, initrd.as_ref())?,
    }
    Ok(kernel)
}

/// Loads the initrd, and what goes before it, beside `kernel` into `ram`, of which there are `mem` bytes.
fn load_initrd(initrd: &Initrd, ram: &GuestRam, kernel: &Kernel, mem: u64) -> Result<LoadedInitrd> {
    let Loadable { file, len: file_len, path } = &initrd.file;
    let named = || format!("initrd {}", path.display());
    ensure!(*file_len > 0, "{}: empty, a file with contents is needed", named());
    let before = initrd.prefix.len() as u64;
    let len = before + file_len;
    let address = place_initrd(len, kernel, mem).with_context(|| {
        let remedy = match least_memory(len, kernel) {
            Some(least) => format!("use --mem {} or more", Size::new(least)),
            None => "use a smaller one".into(),
        };
        format!("{}: its {len} bytes do not fit beside the kernel: {remedy}", named())
    })?;
    ram.write_slice(&initrd.prefix, GuestAddress(address))?;
    let mut buffers = Buffers::default();
    buffers.push(ram.get_slice(GuestAddress(address + before), usize::try_from(*file_len)?)?);
    buffers.read_from_file(file, 0).context("cannot read it").with_context(named)?;
    Ok(LoadedInitrd { address, len })
}

/// Where `len` bytes of initrd go in `mem` bytes of RAM: as high as `initrd_addr_max` allows, for nothing that the kernel
/// unpacks is in the way there; else wherever there is room and the kernel takes it.
fn place_initrd(len: u64, kernel: &Kernel, mem: u64) -> Option<u64> {
    let ram = layout::ram_ranges(mem);
    let below_max = 0..ram[0].end.min(u64::from(kernel.header.initrd_addr_max) + 1);
    let others = match kernel.entry {
        // Linux keeps 32 bits of address and length (arch/x86/platform/pvh/enlighten.c).
        Entry::Pvh(_) => 1,
        Entry::Linux64(_) if kernel.header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 => 2,
        Entry::Linux64(_) => 0,
    };
    [below_max].into_iter().chain(ram.into_iter().take(others)).find_map(|place| {
        let address = place.end.checked_sub(len)? & !0xfff;
        (address >= place.start.max(kernel.end)).then_some(address)
    })
}

/// The least memory, in bytes, that has room for `len` bytes of initrd beside `kernel`, if any has.
fn least_memory(len: u64, kernel: &Kernel) -> Option<u64> {
    let least = [kernel.end + len.next_multiple_of(4096), layout::GAP_START + len];
    let mut least = least.into_iter().map(|mem| mem.next_multiple_of(layout::MIB));
    least.find(|mem| place_initrd(len, kernel, *mem).is_some())
}

fn write_cmdline(ram: &GuestRam, line: &str, kernel_limit: u64) -> Result<()> {
    let limit = kernel_limit.min(layout::CMDLINE_ROOM - 1);
    ensure!(
        line.len() as u64 <= limit,
        "the kernel command line has {} bytes, this kernel takes at most {limit}: shorten --cmdline",
        line.len()
    );
    ram.write_slice(line.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(layout::CMDLINE + line.len() as u64))?;
    Ok(())
}

/// RAM that the guest may use. What is not listed is not RAM: the tables below 1 MiB need no entry.
fn memory_map(mem: u64) -> Vec<Range<u64>> {
    let ranges = layout::ram_ranges(mem).into_iter();
    let from_1_mib = ranges.map(|range| range.start.max(layout::KERNEL_MIN)..range.end);
    std::iter::once(0..layout::LOW_RAM_END).chain(from_1_mib).collect()
}

fn write_zero_page(
    ram: &GuestRam,
    config: &MachineConfig,
    kernel: &Kernel,
    initrd: Option<&LoadedInitrd>,
) -> Result<()> {
    let mut params = boot_params { hdr: kernel.header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE)?;
    params.hdr.setup_data = write_seed(ram)?;
    params.acpi_rsdp_addr = layout::ACPI.start;
    if let Some(initrd) = initrd {
        // The low and the high halves (boot.rst, ext_ramdisk_image).
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initrd.address);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(initrd.len);
    }
    let map = memory_map(config.mem.bytes());
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry =
            boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: E820_RAM };
    }
    params.e820_entries = u8::try_from(map.len())?;
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// A `struct setup_data` with random bytes: the kernel's CRNG is ready at once (since 6.0;
/// older kernels pass over it). Returns its address.
fn write_seed(ram: &GuestRam) -> Result<u64> {
    let seed: [u8; SEED_LEN] = random::bytes()?;
    let at = GuestAddress(layout::SETUP_DATA);
    let no_next = 0u64;
    let header = [SETUP_RNG_SEED, SEED_LEN as u32];
    ram.write_obj(no_next, at)?;
    ram.write_obj(header, GuestAddress(at.0 + 8))?;
    ram.write_slice(&seed, GuestAddress(at.0 + 16))?;
    Ok(at.0)
}

fn write_start_info(
    ram: &GuestRam,
    config: &MachineConfig,
    initrd: Option<&LoadedInitrd>,
) -> Result<()> {
    let start = layout::PVH_START_INFO;
    let (module_at, map_at) = (start + 0x100, start + 0x200);
    if let Some(LoadedInitrd { address, len }) = initrd {
        let module = hvm_modlist_entry { paddr: *address, size: *len, ..Default::default() };
        ram.write_obj(module, GuestAddress(module_at))?;
    }
    let map = memory_map(config.mem.bytes());
    for (index, range) in (0u64..).zip(&map) {
        let (addr, size) = (range.start, range.end - range.start);
        let entry = hvm_memmap_table_entry { addr, size, type_: E820_RAM, reserved: 0 };
        let at = map_at + index * size_of::<hvm_memmap_table_entry>() as u64;
        ram.write_obj(entry, GuestAddress(at))?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { module_at } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI.start,
        memmap_paddr: map_at,
        memmap_entries: u32::try_from(map.len())?,
        ..Default::default()
    };
    Ok(ram.write_obj(info, GuestAddress(start))?)
}

#[cfg(test)]
mod tests {
    use linux_loader::bootparam::setup_header;

    use super::*;
    use crate::layout::{GIB, MIB};

    fn kernel(entry: Entry, xloadflags: u16) -> Kernel {
        let header =
            setup_header { initrd_addr_max: 0x7fff_ffff, xloadflags, ..Default::default() };
        Kernel { entry, end: 64 * MIB, header, acpi: true }
    }

    #[test]
    fn an_initrd_is_where_its_kernel_takes_it() {
        let anywhere = kernel(Entry::Linux64(0), XLF_CAN_BE_LOADED_ABOVE_4G);
        let old = kernel(Entry::Linux64(0), 0);
        let pvh = kernel(Entry::Pvh(0), XLF_CAN_BE_LOADED_ABOVE_4G);
        for kernel in [&anywhere, &old, &pvh] {
            assert_eq!(place_initrd(5000, kernel, GIB), Some(GIB - 8192));
            assert_eq!(place_initrd(5000, kernel, 8 * GIB), Some(2 * GIB - 8192));
            assert_eq!(place_initrd(100 * MIB, kernel, 163 * MIB), None);
            assert_eq!(least_memory(100 * MIB, kernel), Some(164 * MIB));
        }
        let large = 2200 * MIB;
        for kernel in [&anywhere, &pvh] {
            assert_eq!(place_initrd(large, kernel, 3 * GIB), Some(3 * GIB - large));
            assert_eq!(least_memory(large, kernel), Some(large + 64 * MIB));
        }
        assert_eq!(place_initrd(large, &old, 8 * GIB), None);
        assert_eq!(least_memory(large, &old), None);
        let huge = 5 * GIB;
        assert_eq!(place_initrd(huge, &anywhere, 8 * GIB), Some(4 * GIB));
        assert_eq!(place_initrd(huge, &anywhere, 8 * GIB - 4096), None);
        assert_eq!(least_memory(huge, &anywhere), Some(8 * GIB));
        assert_eq!(place_initrd(huge, &pvh, 8 * GIB), None);
        assert_eq!(least_memory(huge, &pvh), None);
    }
}

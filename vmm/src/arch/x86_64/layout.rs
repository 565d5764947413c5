//! Every guest physical address, I/O port and GSI, in one place.
//!
//! RAM starts at 0 and, past 3 GiB, continues at 4 GiB: the gap holds the MMIO windows.

use std::ops::Range;

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// Boot GDT.
pub const GDT: u64 = 0x500;
/// PVH `hvm_start_info`, its module list and memory map (one page).
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux zero page, `struct boot_params` (one page).
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot page tables: PML4, PDPT and four page directories that map the first 4 GiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// End of the boot page tables.
pub const PAGE_TABLES_END: u64 = PAGE_TABLES + 6 * 0x1000;
/// Kernel command line, zero-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, in bytes, with its terminator.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// End of the RAM below 640 KiB that the guest may use; a PC keeps its EBDA above.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Pointer to the MP table, where kernels look for it early: in the last KiB of base memory (MultiProcessor
/// Specification 1.4, 4).
pub const MP_POINTER: u64 = LOW_RAM_END;
/// `struct setup_data` that carries the random seed, where no RAM has to be carved up for it.
pub const SETUP_DATA: u64 = MP_POINTER + 0x10;
/// ACPI tables, the RSDP first: firmware looks for it from here on (ACPI 6.5, 5.2.5.1).
pub const ACPI: Range<u64> = 0xe_0000..0xe_e000;
/// MP table, for kernels without ACPI.
pub const MP_TABLE: Range<u64> = ACPI.end..GENERATION.start;
/// The identity of this copy of the machine, which its ACPI device names (Virtual Machine Generation ID, Microsoft 2012).
pub const GENERATION: Range<u64> = 0xe_fff0..0xf_0000;
/// SMBIOS entry point and table, searched for here (SMBIOS 3.0, 5.2.2).
pub const SMBIOS: Range<u64> = 0xf_0000..RESET_VECTOR;
/// Where firmware's code starts, F000:FFF0 in real mode; a kernel jumps here to reset.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The first address that a kernel may be loaded at.
pub const KERNEL_MIN: u64 = MIB;

/// Where RAM stops below 4 GiB.
pub const GAP_START: u64 = 3 * GIB;
/// Where RAM continues.
pub const GAP_END: u64 = 4 * GIB;
/// What the room for memory that can be plugged is aligned to: Linux adds memory in pieces of up to this many bytes
/// (MAX_BLOCK_SIZE, arch/x86/mm/init_64.c).
pub const ROOM_ALIGN: u64 = 2 * GIB;
/// Firecracker's boot timer, where it has it (its src/vmm/src/arch/x86_64/layout.rs, BOOT_DEVICE_MEM_START).
pub const BOOT_TIMER: Range<u64> = 0xc000_0000..0xc000_1000;
/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of one virtio-mmio window and the distance to the next.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The serial port's registers once more, if the machine has them in memory. All but the first, which is the one
/// that sends and receives, are the start of [`SERIAL_PAGE`], which the guest reads without an exit.
pub const SERIAL_MMIO: Range<u64> = SERIAL_PAGE - 1..SERIAL_PAGE + 7;
/// The page on which they are.
pub const SERIAL_PAGE: u64 = 0xd010_1000;
/// IOAPIC registers, where KVM puts them.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers, where KVM puts them.
pub const LAPIC: u32 = 0xfee0_0000;
/// Identity-mapped page table that KVM needs for real mode on some Intel CPUs.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages of TSS that KVM needs on the same CPUs.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// CMOS RTC: index and data port.
pub const RTC_PORTS: Range<u64> = 0x70..0x72;
/// The one i8042 port that exists: writing 0xfe to it resets the machine.
pub const I8042_PORTS: Range<u64> = 0x64..0x65;
/// The address register of PCI's configuration mechanism #1.
pub const PCI_PORTS: Range<u64> = 0xcf8..0xcfc;
/// First serial port (COM1).
pub const SERIAL_PORTS: Range<u64> = 0x3f8..0x400;
/// pvpanic, at QEMU's address (QEMU docs/specs/pvpanic).
pub const PVPANIC_PORTS: Range<u64> = 0x505..0x506;
/// What a guest reports: that init runs, and the status to end with (devices/guest_report.rs).
pub const REPORT_PORTS: Range<u64> = 0x700..0x702;
/// ACPI sleep control, sleep status and reset registers, a byte each.
pub const POWER_PORTS: Range<u64> = 0x600..0x603;

/// GSI of COM1.
pub const SERIAL_GSI: u32 = 4;
/// GSI by which the ACPI generic event device reports a new identity,
pub const GENERATION_GSI: u32 = 5;
/// and the power button.
pub const EVENT_GSI: u32 = 9;
/// GSI of the first virtio device; one each.
pub const VIRTIO_GSI: u32 = 10;
/// Input pins of KVM's IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// How many virtio devices there can be: a GSI for each.
pub const MAX_VIRTIO: usize = (IOAPIC_PINS - VIRTIO_GSI) as usize;

/// Numbers of KVM's memory slots after those of RAM, of which there are at most two: the serial port's page,
pub const SERIAL_SLOT: u32 = 2;
/// the pages of virtio devices,
pub const VIRTIO_SLOT: u32 = 3;
/// and memory that can be plugged, a slot for each block.
pub const FIRST_BLOCK_SLOT: u32 = 4;
/// Most blocks: KVM_USER_MEM_SLOTS of x86 (include/linux/kvm_host.h, since Linux 5.12), without the other slots.
pub const MAX_BLOCKS: u64 = 32764 - FIRST_BLOCK_SLOT as u64;

const _: () = {
    assert!(GDT + 0x100 <= PVH_START_INFO);
    assert!(PVH_START_INFO + 0x1000 <= ZERO_PAGE);
    assert!(ZERO_PAGE + 0x1000 <= PAGE_TABLES);
    assert!(PAGE_TABLES_END <= CMDLINE);
    assert!(CMDLINE + CMDLINE_ROOM <= LOW_RAM_END);
    assert!(SETUP_DATA >= LOW_RAM_END && SETUP_DATA + 0x400 <= ACPI.start);
    assert!(MP_POINTER >= LOW_RAM_END && MP_POINTER + 0x10 <= SETUP_DATA);
    assert!(LOW_RAM_END <= ACPI.start && ACPI.end <= MP_TABLE.start);
    assert!(MP_TABLE.end <= SMBIOS.start && SMBIOS.end < KERNEL_MIN);
    assert!(GAP_START <= BOOT_TIMER.start && BOOT_TIMER.end <= VIRTIO_MMIO);
    assert!(VIRTIO_MMIO + MAX_VIRTIO as u64 * VIRTIO_MMIO_SIZE <= SERIAL_PAGE - 0x1000);
    assert!(SERIAL_PAGE + 0x1000 <= IOAPIC as u64);
    assert!(LAPIC as u64 + 0x1000 <= KVM_IDENTITY_MAP && KVM_TSS + 0x3000 <= GAP_END);
    assert!(room_start(GAP_START) >= GAP_END && room_start(GAP_START + 1) > GAP_END);
    assert!(SERIAL_GSI < GENERATION_GSI && GENERATION_GSI < EVENT_GSI && EVENT_GSI < VIRTIO_GSI);
};

/// Guest physical ranges of RAM for a machine with `size` bytes of it.
pub fn ram_ranges(size: u64) -> Vec<Range<u64>> {
    let low = 0..size.min(GAP_START);
    let mut ranges = vec![low];
    if size > GAP_START {
        ranges.push(GAP_END..GAP_END + size - GAP_START);
    }
    ranges
}

/// Where there is room for `more` bytes of memory that can be plugged into a machine with `size` bytes of RAM:
/// above all of that, and above the gap.
pub fn room(size: u64, more: u64) -> Range<u64> {
    let start = room_start(size);
    start..start.saturating_add(more)
}

const fn room_start(size: u64) -> u64 {
    let end = GAP_END.saturating_add(size.saturating_sub(GAP_START));
    end.div_ceil(ROOM_ALIGN).saturating_mul(ROOM_ALIGN)
}

/// Base of the `index`-th virtio-mmio window.
pub fn virtio_mmio(index: usize) -> u64 {
    VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE
}

/// GSI of the `index`-th virtio device; `index` is below [`MAX_VIRTIO`].
pub fn virtio_gsi(index: usize) -> u32 {
    VIRTIO_GSI + index as u32
}

//! The machine that a guest finds: memory, boot parameters, CPUs, and nothing elsewhere.

use tinyvmm::arch::cmdline;
use tinyvmm::layout::{self, GIB, MIB};

use crate::fixture::Vmm;
use crate::guests::{self, guest};

const DEFAULT: &str = cmdline::DEFAULT;
const RAM: u32 = 1;

guest!(
    /// Prints its zero page, and 4 KiB of its initrd, which is above 4 GiB.
    high_initrd,
    "mov rbx, rsi",
    "dump 4096",
    "mov rdi, cr3",
    "mov rdi, [rdi]", // to the page directory pointers
    "and rdi, -4096",
    "mov qword ptr [rdi + 4 * 8], 0x80003",
    "mov eax, [rbx + 0xc0]", // ext_ramdisk_image
    "shl rax, 32",
    "mov esi, [rbx + 0x218]",
    "add rsi, rax",
    "mov rax, rsi",
    "and rax, -0x200000",
    "or rax, 0x83",
    "mov rcx, rsi",
    "shr rcx, 21",
    "and ecx, 511",
    "mov [0x80000 + rcx * 8], rax",
    "dump 4096",
    "power_off",
);

guest!(
    /// Prints in how many windows from the first on there is a virtio device.
    counts_devices,
    "mov ebx, 0xd0000000",
    "mov al, '0' - 1",
    "2: inc al",
    "cmp dword ptr [rbx], 0x74726976", // "virt"
    "lea rbx, [rbx + 0x1000]",
    "je 2b",
    "mov edx, {com1}",
    "out dx, al",
    "power_off",
);

guest!(
    /// Prints the pointer to the MP table, and 512 bytes of that.
    mp_table,
    "mov ebx, 0x9fc00",
    "mov esi, ebx",
    "dump 16",
    "mov esi, [rbx + 4]",
    "dump 512",
    "power_off",
);

guest!(
    /// Probes PCI as Linux does, with a byte at 0xcfb first, and prints the address register and what it reads there.
    probes_pci,
    "out8 0xcfb, 1",
    "mov edx, 0xcf8",
    "mov eax, 0x80000000",
    "out dx, eax",
    "xor eax, eax",
    "in eax, dx",
    "mov [0x200000], eax",
    "mov edx, 0xcfc",
    "in eax, dx",
    "mov [0x200004], eax",
    "mov esi, 0x200000",
    "dump 8",
    "power_off",
);

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// `line` with what a kernel without ACPI needs to find this many devices, and the rest of the line.
fn with_devices(line: &str, count: usize, rest: &str) -> String {
    let device = |index| {
        let (base, gsi) = (0xd000_0000u64 + 0x1000 * index, 10 + index);
        format!(" virtio_mmio.device=4096@{base:#x}:{gsi}")
    };
    line.to_owned() + &(0..count as u64).map(device).collect::<String>() + rest
}

fn until_zero(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap()).unwrap()
}

/// The zero page, command line and start of the initrd that `vmm` gives its guest.
fn boot_parameters(vmm: Vmm) -> (Vec<u8>, String, Vec<u8>) {
    let outcome = vmm.guest(guests::zero_page).run().exits(0).silently();
    let pages = outcome.stdout;
    assert_eq!(pages.len(), 3 * 4096, "all that the guest printed arrived");
    (pages[..4096].to_vec(), until_zero(&pages[4096..8192]).into(), pages[8192..].to_vec())
}

/// Start, end and type of each range of the zero page's e820 table.
fn e820(zero_page: &[u8]) -> Vec<(u64, u64, u32)> {
    let table = zero_page[0x2d0..].chunks_exact(20).take(zero_page[0x1e8].into());
    let range = |entry: &[u8]| (u64_at(entry, 0), u64_at(entry, 0) + u64_at(entry, 8));
    table.map(|entry| (range(entry).0, range(entry).1, u32_at(entry, 16))).collect()
}

#[test]
fn an_error_is_one_line_where_backtraces_are_wanted() {
    // A release has no tables to unwind its stack with.
    let missing = || Vmm::new().env("RUST_BACKTRACE", "1").args(["--kernel", "none"]);
    missing().run().refuses(3, &["kernel none"]);
    missing().env("RUST_LIB_BACKTRACE", "1").run().refuses(3, &["kernel none"]);
}

#[test]
fn a_guest_prints_and_powers_off() {
    let outcome = Vmm::new().guest(guests::hello).run().exits(0).silently().leaves_nothing();
    let stdout = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(stdout, "hello byte by byte\nhello at a time\n");
}

#[test]
fn the_zero_page_has_memory_and_the_default_command_line() {
    let (page, cmdline, _) = boot_parameters(Vmm::new().args(["--mem", "64M"]));
    let low = (0, layout::LOW_RAM_END, RAM);
    assert_eq!(e820(&page), [low, (MIB, 64 * MIB, RAM)]);
    assert_eq!(cmdline, with_devices(DEFAULT, 2, ""), "and it has no ACPI");
    assert_eq!(u32_at(&page, 0x202), 0x5372_6448, "the setup header's magic");
    let initrd = [0x218, 0x21c, 0xc0, 0xc4].map(|at| u32_at(&page, at));
    assert_eq!(initrd, [0; 4], "no initrd");
}

#[test]
fn memory_past_3_gib_continues_at_4_gib() {
    let (page, _, _) = boot_parameters(Vmm::new().args(["--mem", "4.5G"]));
    let ram = [(MIB, 3 * GIB, RAM), (4 * GIB, 5 * GIB + GIB / 2, RAM)];
    assert_eq!(e820(&page)[1..], ram);
}

#[test]
fn memory_costs_nothing_until_the_guest_uses_it() {
    let vmm = Vmm::new().guest(guests::high_memory).args(["--mem", "4.5G"]);
    let running = vmm.start().prints("high memory works");
    let rss_mib = running.rss_kib() >> 10;
    assert!(rss_mib < 64, "{rss_mib} MiB are in use for 4.5G that the guest does not use");
}

#[test]
fn the_command_line_is_appended_or_taken_as_it_is() {
    let line = |args: &[&str]| {
        let disk = |name| Vmm::new().sparse_file(name, MIB);
        boot_parameters(disk("root.img").args(args)).1
    };
    let default = |added: &str, devices| with_devices(&format!("{DEFAULT}{added}"), devices, "");
    assert_eq!(line(&["--cmdline", "quiet a=b"]), default(" quiet a=b", 2));
    assert_eq!(line(&["--cmdline", "-- a=b"]), with_devices(DEFAULT, 2, " -- a=b"));
    assert_eq!(line(&["--cmdline", "-- only", "--cmdline-only"]), "-- only");
    assert_eq!(line(&["--disk", "root.img"]), default(" root=/dev/vda rw", 3));
    assert_eq!(line(&["--disk", "root.img,readonly"]), default(" root=/dev/vda ro", 3));
    assert_eq!(line(&["--balloon", "off"]), default("", 1));
}

#[test]
fn devices_are_on_the_command_line_of_kernels_without_acpi_only() {
    let line = |name, added| {
        let kernel = guests::elf_with_parameter(name, &guests::zero_page());
        let outcome = Vmm::new().kernel(&kernel).args(["--cmdline", added]).run().exits(0);
        until_zero(&outcome.stdout[4096..8192]).to_owned()
    };
    assert_eq!(line("acpi.acpica_version", "quiet"), format!("{DEFAULT} quiet"));
    let for_init = "quiet -- acpi=off";
    assert_eq!(line("acpi.acpica_version", for_init), format!("{DEFAULT} {for_init}"));
    let off = "quiet acpi=off";
    let without = [("acpi.acpica_version", off), ("acpiphp.disable", "quiet"), ("a.b", "quiet")];
    for (name, added) in without {
        assert_eq!(line(name, added), with_devices(&format!("{DEFAULT} {added}"), 2, ""), "{name}");
    }
}

#[test]
fn the_command_line_names_as_many_devices_as_there_are() {
    let stdout = |guest| {
        let vmm = Vmm::new().guest(guest).sparse_file("disk", MIB);
        vmm.args(["--disk", "disk", "--mem", "256M,max=1G"]).run().exits(0).stdout
    };
    let parameters = stdout(guests::zero_page);
    let line = until_zero(&parameters[4096..8192]);
    assert_eq!(line.matches("virtio_mmio.device=").count(), 4, "{line}");
    assert_eq!(stdout(counts_devices), b"4");
}

#[test]
fn a_kernel_without_acpi_finds_cpus_and_interrupts_in_the_mp_table() {
    let vmm = Vmm::new().guest(mp_table).args(["--cpus", "3"]);
    let (pointer, table) = (16, vmm.run().exits(0).silently().stdout);
    let (pointer, table) = table.split_at(pointer);
    assert_eq!((&pointer[..4], u32_at(pointer, 4)), (b"_MP_".as_slice(), 0xe_e000));
    assert_eq!((&table[..4], u32_at(table, 36)), (b"PCMP".as_slice(), layout::LAPIC));
    let cpus = table[44..].chunks(20).take(3).map(|cpu| [cpu[0], cpu[1], cpu[3]]);
    assert_eq!(cpus.collect::<Vec<_>>(), [[0, 0, 3], [0, 1, 1], [0, 2, 1]]);
}

/// Linux takes this for a bus with nothing on it, and says nothing about it (arch/x86/pci/direct.c).
#[test]
fn the_pci_bus_is_empty() {
    let outcome = Vmm::new().guest(probes_pci).run().exits(0).silently();
    assert_eq!(outcome.stdout, [0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn the_initrd_is_loaded_high_and_whole() {
    let contents: Vec<u8> = (0..5000u32).map(|at| (at % 251) as u8).collect();
    let vmm = Vmm::new().file("initrd", &contents).args(["--mem", "64M", "--initrd", "initrd"]);
    let (page, _, start) = boot_parameters(vmm);
    let (address, len) = (u64::from(u32_at(&page, 0x218)), u64::from(u32_at(&page, 0x21c)));
    assert_eq!(len, 5000);
    assert_eq!(address % 4096, 0, "{address:#x} is on a page boundary");
    assert!((32 * MIB..=64 * MIB - len).contains(&address), "{address:#x} is high in 64 MiB");
    assert_eq!(start, contents[..4096]);
}

#[test]
fn an_initrd_that_has_no_room_below_4_gib_is_above() {
    let contents: Vec<u8> = (0..5000u32).map(|at| (at % 251) as u8).collect();
    let kernel = guests::elf_up_to(3 * GIB, &high_initrd());
    let vmm = Vmm::new().file("initrd", &contents).kernel(&kernel);
    let outcome = vmm.args(["--mem", "3.5G", "--initrd", "initrd"]).run().exits(0).silently();
    let (page, start) = outcome.stdout.split_at(4096);
    let both = |low, high| u64::from(u32_at(page, low)) | u64::from(u32_at(page, high)) << 32;
    assert_eq!(both(0x218, 0xc0), 4 * GIB + GIB / 2 - 8192, "its address");
    assert_eq!(both(0x21c, 0xc4), 5000, "its length");
    assert_eq!(start, &contents[..4096]);
}

/// Linux reads at most 2 GiB of a file at a time.
#[test]
fn an_initrd_may_be_larger_than_2_gib() {
    let vmm = Vmm::new().guest(guests::hello).sparse_file("large", 2 * GIB + 1);
    vmm.args(["--mem", "2304M", "--initrd", "large"]).run().exits(0).silently();
}

#[test]
fn an_elf_with_only_a_pvh_entry_is_entered_there() {
    let kernel = guests::only_pvh(&guests::pvh(), 4, 4);
    let outcome = Vmm::new().kernel(&kernel).args(["--mem", "64M"]).run().exits(0).silently();
    let info = &outcome.stdout[..1024];
    assert_eq!((u32_at(info, 0), u32_at(info, 4)), (0x336e_c578, 1), "magic and version");
    let map = usize::try_from(u64_at(info, 40) - layout::PVH_START_INFO).unwrap();
    assert_eq!(u32_at(info, 48), 2, "entries of the memory map");
    let last = map + 24;
    assert_eq!((u64_at(info, last), u64_at(info, last + 8)), (MIB, 63 * MIB), "its last entry");
    assert_eq!(until_zero(&outcome.stdout[1024..]), with_devices(DEFAULT, 2, ""));
}

/// Linkers give PT_NOTE the largest alignment of what they put into it, and leave the notes as they are.
#[test]
fn a_pvh_entry_is_found_whatever_the_alignment_of_its_note() {
    for (align, unit) in [(0, 4), (1, 4), (4, 4), (8, 4), (16, 4), (4096, 4), (8, 8)] {
        let kernel = guests::only_pvh(&guests::pvh(), align, unit);
        let outcome = Vmm::new().kernel(&kernel).run();
        assert_eq!(outcome.stderr, "", "p_align {align}, notes in units of {unit}");
        outcome.exits(0);
    }
}

#[test]
fn nothing_reads_as_all_ones_and_ignores_writes() {
    let outcome = Vmm::new().guest(guests::reads_nothing).run().exits(0).silently();
    assert_eq!(outcome.stdout, [0xff; 22]);
}

#[test]
fn a_second_cpu_starts_when_the_first_wakes_it() {
    let vmm = Vmm::new().guest(guests::second_cpu).args(["--cpus", "2"]);
    assert_eq!(vmm.run().exits(0).silently().stdout, b"2");
}

#[test]
fn a_machine_is_one_process_with_a_thread_for_each_cpu() {
    let vmm = Vmm::new().guest(guests::idle).args(["--cpus", "3"]);
    let is_cpu = |name: &&String| name.starts_with("vcpu");
    // Threads get their names soon, and those that have loaded the kernel end. Then there are the owner, the starter,
    // the console's thread, and one that newer kernels add for a VM.
    let running = vmm.start().until(|vm| {
        let threads = vm.threads();
        let has_console = threads.contains(&"console".into());
        threads.iter().filter(is_cpu).count() == 3 && has_console && threads.len() <= 7
    });
    running.signal(libc::SIGKILL);
    running.wait().leaves_nothing();
}

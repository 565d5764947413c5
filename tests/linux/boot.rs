//! Stock kernels reach init, and find the configured machine.

use std::fs;
use std::time::SystemTime;

use super::{
    AMD64_BZIMAGE, CLOUD_BZIMAGE, CLOUD_ELF, Console, IN_A_BOX, INIT, Kernel, console_of, then_run,
};
use crate::fixture::Vmm;

/// The least that Debian's kernels can do with. The cloud kernel's bzImage takes 16 MiB and an
/// init_size of 52 MiB, its ELF ends at 62 MiB; each leaves the initrd no room in 64 MiB. In 72 MiB
/// it starts, and panics for lack of memory.
const LEAST_MIB: u64 = 96;
const HIGH_MIB: u64 = 4608;
const UUID: &str = "6f0e5a3c-8a34-4d0e-9b1e-0f2d4c6b8a90";

/// The guest's questions about its machine. The brackets keep dmesg's copy of them from matching.
const QUESTIONS: [&str; 12] = [
    "echo cpus=$(nproc) $(grep -c ^processor /proc/cpuinfo)",
    "echo flags=$(grep -m1 ^flags /proc/cpuinfo)",
    "echo mem_kib=$(awk '/MemTotal/{print $2}' /proc/meminfo)",
    "echo high=$(grep ^100000000- /proc/iomem)",
    "echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)",
    "echo time=$(date +%s)",
    "cd /sys/class/dmi/id; echo dmi=$(cat sys_vendor), $(cat product_name), $(cat product_uuid)",
    "echo hwrng=$(cat /sys/class/misc/hw_random/rng_current)",
    "echo crng=$(dmesg | grep '[c]rng init done')",
    "t=topology; cd /sys/devices/system/cpu",
    "echo topology=$(for c in cpu?; do cat $c/$t/physical_package_id $c/$t/thread_siblings_list; done)",
    "echo wrong=$(dmesg | grep -E '[X]SAVE cons|[O]ops|[W]ARNING: CPU|[B]UG|[C]all Trace|[F]irmware [BW]|[P]CI: Fatal')",
];

fn asked(kernel: Kernel, cpus: &str, mem_mib: u64) -> Vmm {
    let vmm = kernel.runs(&QUESTIONS.join("; "));
    vmm.args(["--cpus", cpus, "--mem", &format!("{mem_mib}M"), "--uuid", UUID])
}

/// Checks that the guest takes the time from what Linux prefers: from a TSC that never stops, which KVM's clock would only
/// wrap (kvmclock_init in arch/x86/kernel/kvmclock.c), else from KVM's clock.
#[track_caller]
fn has_a_clock(console: &Console) {
    let stable = ["constant_tsc", "nonstop_tsc"];
    let flags: Vec<&str> = console.value("flags").split(' ').collect();
    let has_stable_tsc = stable.iter().all(|flag| flags.contains(flag));
    console.has("clock", if has_stable_tsc { "tsc" } else { "kvm-clock" });
}

/// Checks that the guest has found a machine of this size.
#[track_caller]
fn check(console: &Console, cpus: u64, mem_mib: u64) {
    console.has("cpus", &format!("{cpus} {cpus}"));
    let flags: Vec<&str> = console.value("flags").split(' ').collect();
    for flag in ["hypervisor", "x2apic", "tsc_deadline_timer"] {
        assert!(flags.contains(&flag), "the CPUs have no {flag}: {flags:?}");
    }
    let (found, given) = (console.number("mem_kib"), mem_mib << 10);
    let least = given / 100 * 95 - (64 << 10); // what the kernel keeps for itself
    assert!((least..given).contains(&found), "{found} KiB of {given}:\n{}", console.0);
    match mem_mib {
        HIGH_MIB => console.has("high", "100000000-15fffffff : System RAM"),
        _ => console.has("high", ""),
    };
    has_a_clock(console);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now.abs_diff(console.number("time")) < 120, "the host's time is {now}:\n{}", console.0);
    console.has("dmi", &format!("tinyvmm, Virtual Machine, {UUID}"));
    assert!(console.value("hwrng").starts_with("virtio_rng"), "{}", console.0);
    assert!(console.value("crng").starts_with("[ 0."), "seeded late:\n{}", console.0);
    console.has("wrong", "");
}

#[track_caller]
fn reaches_init(kernel: Kernel, cpus: u64, mem_mib: u64) {
    check(&console_of(asked(kernel, &cpus.to_string(), mem_mib)), cpus, mem_mib);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_bzimage_boots_in_little_memory() {
    reaches_init(CLOUD_BZIMAGE, 1, LEAST_MIB);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_bzimage_boots_on_two_cpus() {
    reaches_init(CLOUD_BZIMAGE, 2, 512);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_bzimage_boots_on_two_sockets_with_memory_beyond_4g() {
    let console = console_of(asked(CLOUD_BZIMAGE, "4,sockets=2", HIGH_MIB));
    check(&console, 4, HIGH_MIB);
    console.has("topology", "0 0 0 1 1 2 1 3");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_elf_boots_with_memory_beyond_4g_and_takes_only_what_it_needs_of_it() {
    let running = asked(CLOUD_ELF, "1", HIGH_MIB).start().prints(INIT);
    let taken_mib = running.rss_kib() >> 10;
    assert!(taken_mib < 1024, "{taken_mib} MiB of the host's memory for a guest that just started");
    let outcome = running.wait().exits(0).silently();
    check(&Console::of(&outcome), 1, HIGH_MIB);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_elf_boots_on_two_cpus_in_little_memory() {
    reaches_init(CLOUD_ELF, 2, LEAST_MIB);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_cloud_elf_boots_on_four_threads_of_two_cores() {
    let console = console_of(asked(CLOUD_ELF, "4,sockets=1,cores=2,threads=2", 512));
    check(&console, 4, 512);
    console.has("topology", "0 0-1 0 0-1 0 2-3 0 2-3");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_xz_bzimage_boots_in_little_memory() {
    reaches_init(AMD64_BZIMAGE, 1, LEAST_MIB);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_xz_bzimage_boots_on_two_cpus_with_memory_beyond_4g() {
    reaches_init(AMD64_BZIMAGE, 2, HIGH_MIB);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn the_elf_of_an_xz_bzimage_boots_on_four_cpus() {
    reaches_init(Kernel { file: "vmlinux", ..AMD64_BZIMAGE }, 4, 512);
}

/// An ELF whose entry is not the 64-bit one, but that has Xen's note, is entered as PVH.
#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_elf_with_only_a_pvh_entry_boots() {
    let mut elf = fs::read(CLOUD_ELF.path()).unwrap();
    let entry = 24..32; // e_entry of an ELF64 header
    elf[entry].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    let line = format!("quiet {}", then_run(&QUESTIONS.join("; ")));
    let vmm =
        Vmm::new().patiently(IN_A_BOX).kernel(&elf).args(["--initrd".into(), CLOUD_ELF.initrd()]);
    let vmm = vmm.args(["--cmdline", &line, "--cpus", "2", "--mem", "512M", "--uuid", UUID]);
    let console = console_of(vmm);
    // PVH has no field for a seed: the guest gathers its own randomness.
    assert_eq!(console.count("cpus=2 2"), 1, "{}", console.0);
    has_a_clock(&console);
    console.has("wrong", "");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_kernel_that_memory_has_no_room_for_is_refused_with_the_least_that_has() {
    for (kernel, words) in
        [(CLOUD_BZIMAGE, ["vmlinuz", "--mem 68M"]), (CLOUD_ELF, ["initramfs", "--mem 66M"])]
    {
        kernel.runs("true").args(["--mem", "64M"]).run().refuses(3, &words);
    }
}

/// The kernel's virtual address; `options` come before `--`, from where init may get them, too.
#[track_caller]
fn address(kernel: Kernel, options: &str, cpus: &str) -> u64 {
    let script = then_run("|| true; echo text=$(grep -w _text /proc/kallsyms) cpus=$(nproc)");
    let vmm = kernel.with_cmdline(&format!("quiet {options} {script}")).args(["--cpus", cpus]);
    let console = console_of(vmm);
    let value: Vec<&str> = console.value("text").split(' ').collect();
    assert_eq!(value[3], format!("cpus={cpus}"));
    u64::from_str_radix(value[0], 16).unwrap()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_kernel_is_at_a_random_address_unless_nokaslr_is_given() {
    const LINKED: u64 = 0xffff_ffff_8100_0000;
    for kernel in [CLOUD_BZIMAGE, CLOUD_ELF] {
        assert_eq!(address(kernel, "nokaslr", "2"), LINKED);
        let addresses = ["1", "2", "1"].map(|cpus| address(kernel, "true", cpus));
        for address in addresses {
            assert!((LINKED..0xffff_ffff_c000_0000).contains(&address), "{address:#x}");
            assert_eq!(address % (2 << 20), 0, "{address:#x}");
        }
        // One in some 240,000 times all three are the same.
        assert!(addresses.iter().any(|a| *a != addresses[0]), "{addresses:x?}");
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn without_acpi_cpus_are_found_in_the_mp_table() {
    let vmm = AMD64_BZIMAGE.with_cmdline("acpi=off").args(["--cpus", "2", "--", "nproc"]);
    assert_eq!(Console::of(&vmm.run().exits(0).silently()).0, "2\n");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_bzimage_can_be_left_to_unpack_itself() {
    let asked = asked(CLOUD_BZIMAGE, "2", 512).args(["--kernel-entry", "decompress"]);
    check(&console_of(asked), 2, 512);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn the_command_line_is_the_default_one_and_what_was_added() {
    let added = format!("quiet tiny.a=1 {}", then_run("echo line=$(cat /proc/cmdline)"));
    let console = console_of(CLOUD_ELF.with_cmdline(&added));
    let line = console.value("line");
    let default =
        line.strip_suffix(&added).unwrap_or_else(|| panic!("'{added}' is not at its end: {line}"));
    assert!(default.starts_with("console=ttyS0 panic=-1 "), "no default: {line}");
    assert!(!default.contains("virtio_mmio"), "it has ACPI: {line}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn the_only_command_line_is_untouched() {
    let line = "  tiny.a=1   console=ttyS0 quiet -- \"cat /proc/cmdline\"";
    let console = console_of(CLOUD_ELF.with_cmdline(line).args(["--cmdline-only"]));
    let found = console.0.lines().any(|found| found == line);
    assert!(found, "no line is exactly this one: {line}\n{}", console.0);
}

//! Memory that a guest has freed, or is asked for, goes back to the host.

use std::process::Stdio;

use super::{CLOUD_ELF, Console, Kernel, SMALL_ELF, console_of};
use crate::fixture::Running;

const MIB: u64 = 1 << 10; // in KiB, as all here

/// A guest of 512 MiB that fills 256 MiB and frees them when it is told to; and what the process
/// had before and in between.
fn filled(balloon: &str) -> (Running, u64, u64) {
    let script = "mount -t tmpfs -o size=300m tmpfs /mnt; sleep 6; echo idle=1; read go; \
        dd if=/dev/zero of=/mnt/big bs=1M count=256 2>/dev/null; echo full=1; read go; \
        rm /mnt/big; echo freed=1; read go";
    let vmm = SMALL_ELF.runs(script).args(["--mem", "512M", "--balloon", balloon]);
    let running = vmm.stdin(Stdio::piped()).start().prints("idle=1");
    let before = running.rss_kib();
    let running = running.types("\n").prints("full=1");
    let full = running.rss_kib();
    assert!(full > before + 200 * MIB, "{before} KiB before, {full} KiB full");
    (running.types("\n").prints("freed=1"), before, full)
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_a_guest_frees_goes_back_to_the_host() {
    let (running, before, _) = filled("0");
    assert!(before < 56 * MIB, "an idle guest takes {before} KiB");
    let running = running.until(|running| running.rss_kib() < before + 16 * MIB);
    running.types("\n").wait().exits(0).silently();
    // What nobody gives back stays.
    let (running, _, full) = filled("off");
    let left = running.rss_kib();
    assert!(left > full - 16 * MIB, "{full} KiB became {left} KiB");
    running.types("\n").wait().exits(0).silently();
}

/// A guest of 256 MiB with 128 MiB in its balloon, that then runs `script`.
fn inflated(kernel: Kernel, script: &str) -> Console {
    let script = format!(
        "event() {{ awk '/^balloon_'$1'/{{print $2}}' /proc/vmstat; }}; \
         while [ $(event inflate) -lt 32768 ]; do usleep 20000; done; {script}; \
         echo inflated=$(event inflate); echo deflated=$(event deflate); \
         echo wrong=$(dmesg | grep -E '[O]ops|[B]UG|[C]all Trace|[O]ut of memory')"
    );
    let console = console_of(kernel.runs(&script).args(["--balloon", "128M"]));
    console.has("inflated", "32768").has("wrong", "");
    console
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_does_without_what_its_balloon_is_to_have() {
    inflated(CLOUD_ELF, "true").has("deflated", "0");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_out_of_memory_takes_it_from_its_balloon() {
    let script = "free=$(awk '/MemFree/{print $2}' /proc/meminfo); \
        mount -t tmpfs -o size=240m tmpfs /mnt; head -c $(((free + 2048) * 1024)) /dev/zero > /mnt/big && \
        echo filled=1";
    let console = inflated(SMALL_ELF, script);
    console.has("filled", "1");
    assert!(console.number("deflated") > 0, "{}", console.0);
}

//! The ends of Linux, and tinyvmm's report of them.

use std::process::Stdio;

use super::{CLOUD_ELF, Console, INIT, SMALL_ELF, console_of, disk};
use crate::fixture::Dir;

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_power_off_is_a_success_and_the_console_may_be_a_file() {
    let vmm = CLOUD_ELF.runs("echo said=$((6 * 7))").args(["--console", "log"]);
    let outcome = vmm.run().exits(0).silently();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "", "standard output");
    let log = outcome.file("log");
    assert!(log.contains("said=42\r\n") && log.contains("exit status 0"), "{log}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_reboot_starts_the_machine_again_with_its_disk() {
    let dir = Dir::new();
    let path = dir.path("memory.img");
    std::fs::write(&path, [0; 4096]).unwrap();
    let script = "grep -q again /dev/vda && poweroff -f; echo again > /dev/vda; sync; reboot -f";
    let console = console_of(SMALL_ELF.runs(script).args(disk(&path, "")).args(["--cpus", "2"]));
    assert_eq!(console.count(INIT), 2, "boots:\n{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_reboot_ends_a_machine_that_is_not_to_reboot() {
    let flags = ["--no-reboot", "--console", "off"];
    let outcome = CLOUD_ELF.runs("reboot -f").args(flags).run();
    let outcome = outcome.exits(4).says(&["the guest rebooted"]).leaves_nothing();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "", "a console that is off");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_reboot_by_triple_fault_is_reported_as_that() {
    let vmm = CLOUD_ELF.with_cmdline("quiet reboot=t -- \"reboot -f\"");
    vmm.run().exits(5).says(&["triple fault in the guest"]).leaves_nothing();
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_panic_ends_the_machine() {
    let outcome = CLOUD_ELF.runs("echo c > /proc/sysrq-trigger").run();
    let outcome = outcome.exits(6).says(&["kernel panic in the guest"]).leaves_nothing();
    assert_eq!(Console::of(&outcome).count("sysrq triggered crash"), 1, "its last words are shown");
}

/// The kernel resets the machine long before a driver could report the panic.
#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_panic_for_lack_of_a_root_disk_ends_the_machine() {
    let dir = Dir::new();
    let path = dir.path("no-driver-for-it.img");
    std::fs::write(&path, [0; 4096]).unwrap();
    let vmm = CLOUD_ELF.bare("loglevel=6").args(disk(&path, ",readonly"));
    let console = Console::of(&vmm.run().exits(6).says(&["kernel panic in the guest"]));
    // The disk was to be the root, read-only like itself.
    assert!(console.0.contains(" root=/dev/vda ro loglevel=6\n"), "{}", console.0);
    assert_eq!(console.count("Unable to mount root fs"), 1, "{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_time_limit_ends_the_machine() {
    let vmm = CLOUD_ELF.runs("sleep 1000").args(["--timeout", "1500ms"]);
    vmm.run().exits(7).says(&["--timeout is over"]).leaves_nothing();
}

/// Says `ready` once acpid listens to the power button.
pub(super) const LISTENING: &str =
    "until ls -l /proc/$(pidof acpid)/fd | grep -q event; do usleep 50000; done; echo ready=1";

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn sigterm_presses_the_power_button_and_linux_powers_off() {
    let vmm = CLOUD_ELF.runs(&format!("{LISTENING}; sleep 1000")).args(["--cpus", "2"]);
    let running = vmm.start().prints("ready=1");
    running.signal(libc::SIGTERM);
    let outcome = running.wait().exits(0).silently().leaves_nothing();
    let console = Console::of(&outcome);
    assert_eq!(console.count("tinyvmm-init: power button"), 1, "{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_that_ignores_its_power_button_is_stopped() {
    let script = format!("{LISTENING}; killall acpid; echo deaf=1; sleep 1000");
    let running = CLOUD_ELF.runs(&script).start().prints("deaf=1");
    running.signal(libc::SIGINT);
    running.wait().exits(8).says(&["stopped by a signal"]).leaves_nothing();
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_shell_on_the_console_takes_all_that_is_typed() {
    let running = CLOUD_ELF.with_cmdline("quiet").stdin(Stdio::piped()).start().prints("# ");
    let lines: String = (1..=100).map(|n| format!("echo n$((1000 + {n}))\n")).collect();
    let outcome = running.types(&lines).types("exit\n").wait().exits(0).silently();
    let console = Console::of(&outcome);
    for n in 1001..=1100 {
        assert!(console.0.contains(&format!("n{n}\n")), "line {n} is lost:\n{}", console.0);
    }
}

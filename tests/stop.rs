//! The ends of a machine: by itself, by a time limit, by a signal. The exit code and one line report the end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fixture::{Running, Vmm};
use crate::guests::{self, guest};

/// A machine that has printed `text`, and that logs when its power button is pressed.
fn running(code: fn() -> Vec<u8>, text: &str) -> Running {
    Vmm::new().guest(code).args(["--log-level", "info"]).start().prints(text)
}

const BUTTON: &str = "pressing the guest's power button";

#[test]
fn resets_end_the_machine_with_no_reboot() {
    for code in [guests::acpi_reset, guests::i8042_reset] {
        let outcome = Vmm::new().guest(code).args(["--no-reboot"]).run();
        outcome.exits(4).says(&["the guest rebooted"]).leaves_nothing();
    }
}

#[test]
fn a_guest_that_resets_starts_again_with_empty_memory() {
    // The guest counts its boots in RAM: a second boot would print 2.
    let running = Vmm::new().guest(guests::acpi_reset).start();
    running.prints(&"boot 1\n".repeat(5));
}

#[test]
fn restarts_leave_no_threads_or_files_behind() {
    let held = |vm: &Running| {
        let count = |name| fs::read_dir(vm.proc(name)).unwrap().count();
        (count("task"), count("fd"))
    };
    let vmm = Vmm::new().guest(guests::acpi_reset);
    // Only root can see the open files of a process in its jail.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let vmm = if is_root { vmm } else { vmm.args(["--no-jail"]) };
    let running = vmm.start().prints(&"boot 1\n".repeat(3));
    let (threads, files) = held(&running);
    let running = running.prints(&"boot 1\n".repeat(53));
    let (threads_later, files_later) = held(&running);
    // One left behind at each reset would be 50 more; a machine being taken apart has a dozen.
    assert!(threads_later < threads + 25, "{threads} threads became {threads_later}");
    assert!(files_later < files + 25, "{files} open files became {files_later}");
}

#[test]
fn a_restart_keeps_the_time_limit() {
    let outcome = Vmm::new().guest(guests::i8042_reset).args(["--timeout", "1s"]).run();
    outcome.exits(7).says(&["--timeout is over"]).leaves_nothing();
}

#[test]
fn a_triple_fault_ends_the_machine() {
    let outcome = Vmm::new().guest(guests::triple_fault).run();
    outcome.exits(5).says(&["triple fault in the guest"]).leaves_nothing();
}

#[test]
fn a_guest_that_kvm_cannot_run_is_an_internal_error() {
    let outcome = Vmm::new().guest(guests::lost).run();
    outcome.exits(1).says(&["internal error", "0xd8000000"]).leaves_nothing();
}

guest!(
    /// Reports a panic as a kernel does, then prints a lot and its last line.
    panics_and_prints,
    r#"say "Kernel panic - not syncing: te""#,
    "out8 {pvpanic}, 1",
    r#"say "st\n""#,
    "mov esi, 0x200000",
    "dump 4096",
    r#"say "Kernel Offset: disabled\n""#,
    "sleep",
);

guest!(
    /// Reports a panic, prints, and resets.
    panics_and_resets,
    "out8 {pvpanic}, 1",
    "mov esi, 0x200000",
    "dump 4096",
    r#"say "Kernel Offset: disabled\n""#,
    "out8 {reset}, 1",
    "sleep",
);

guest!(
    /// Reports a panic, prints, and powers off.
    panics_and_powers_off,
    "out8 {pvpanic}, 1",
    "mov esi, 0x200000",
    "dump 4096",
    r#"say "Kernel Offset: disabled\n""#,
    "power_off",
);

guest!(
    /// Reports panics for ever.
    panics_for_ever,
    "2: out8 {pvpanic}, 1",
    "jmp 2b",
);

guest!(
    /// Reports a panic and prints for ever.
    panics_and_floods,
    "out8 {pvpanic}, 1",
    "2: mov esi, 0x200000",
    "dump 4096",
    "jmp 2b",
);

#[test]
fn a_panic_that_pvpanic_reports_ends_the_machine() {
    for code in [guests::pvpanic, panics_for_ever] {
        let outcome = Vmm::new().guest(code).run();
        outcome.exits(6).says(&["kernel panic in the guest"]).leaves_nothing();
    }
}

#[test]
fn what_a_kernel_prints_after_its_panic_is_not_cut_off() {
    for code in [panics_and_prints, panics_and_resets, panics_and_powers_off] {
        let outcome = Vmm::new().guest(code).run().exits(6).prints("Kernel Offset: disabled\n");
        outcome.says(&["kernel panic in the guest"]).leaves_nothing();
    }
}

#[test]
fn a_panic_that_is_printed_without_end_is_ended_by_the_time_limit() {
    let vmm = Vmm::new().guest(panics_and_floods).args(["--timeout", "2s"]).stdout(Stdio::null());
    vmm.run().exits(6).says(&["kernel panic in the guest"]);
}

guest!(
    /// Ends with status 42 while its serial port's driver waits for interrupts to send the rest.
    ends_with_42_and_prints,
    "out8 {com1} + 1, 2", // IER: transmitter empty
    "out8 {report} + 1, 42",
    "mov esi, 0x200000",
    "dump 4096",
    r#"say "that was all\n""#,
    "out8 {com1} + 1, 0",
    "sleep",
);

guest!(
    /// Ends with status 42 while the serial port's driver has more and never sends it.
    ends_with_42_and_waits,
    "out8 {com1} + 1, 2",
    "out8 {report} + 1, 42",
    "sleep",
);

#[test]
fn what_a_driver_still_sends_after_the_exit_status_is_not_cut_off() {
    let outcome = Vmm::new().guest(ends_with_42_and_prints).run();
    outcome.exits(42).prints("that was all\n").leaves_nothing();
    Vmm::new().guest(ends_with_42_and_waits).run().exits(42).leaves_nothing();
}

#[test]
fn a_panic_that_only_the_console_shows_ends_the_machine_at_its_reset() {
    for code in [guests::panic_and_acpi_reset, guests::panic_and_triple_fault] {
        // With a limit, as a machine that started again would end as well.
        let outcome = Vmm::new().guest(code).args(["--timeout", "2s"]).run();
        outcome.exits(6).prints("not syncing: test").says(&["kernel panic in the guest"]);
    }
}

#[test]
fn a_time_limit_ends_a_busy_guest_and_a_sleeping_one() {
    for code in [guests::busy, guests::idle] {
        let outcome = Vmm::new().guest(code).args(["--timeout", "300ms"]).run();
        outcome.exits(7).says(&["--timeout is over"]).leaves_nothing();
    }
}

#[test]
fn signals_that_were_blocked_before_still_end_it() {
    let blocking = |which: &str| Vmm::started_by(&["env", &format!("--block-signal{which}")]);
    // All signals, and the one that gets a vCPU out of KVM_RUN.
    for which in ["", "=RTMIN"] {
        let vmm = blocking(which).guest(guests::idle).args(["--timeout", "300ms"]);
        vmm.run().exits(7).says(&["--timeout is over"]).leaves_nothing();
    }
    let running = blocking("=TERM").guest(guests::obedient).start().prints("ready");
    running.signal(libc::SIGTERM);
    running.wait().exits(0).prints("button").silently();
}

#[test]
fn a_boot_test_ends_whatever_was_done_to_signals_before() {
    let started_by = ["env", "--block-signal", "--ignore-signal=CHLD"];
    let spec = "[[machine]]\nname = 'm'\nkernel = 'idle'\ntimeout = '90s'\nexpect = ['idle']\n";
    let vmm = Vmm::started_by(&started_by).file("idle", guests::elf(&guests::idle()));
    vmm.file("spec.toml", spec).args(["boot-test", "spec.toml"]).run().exits(0);
}

#[test]
fn sigterm_presses_the_power_button_and_the_guest_powers_off() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let running = Vmm::new().guest(guests::obedient).start().prints("ready");
        running.signal(signal);
        running.wait().exits(0).prints("button").silently().leaves_nothing();
    }
}

#[test]
fn a_guest_that_does_not_listen_has_five_seconds() {
    let running = Vmm::new().guest(guests::idle).start().prints("idle");
    let start = Instant::now();
    running.signal(libc::SIGTERM);
    let outcome = running.wait();
    assert!(start.elapsed() >= Duration::from_secs(5), "its time is not cut short");
    outcome.exits(8).says(&["stopped by a signal"]).leaves_nothing();
}

#[test]
fn a_second_signal_ends_the_machine_at_once() {
    for (first, second) in [(libc::SIGTERM, libc::SIGTERM), (libc::SIGINT, libc::SIGHUP)] {
        let running = running(guests::busy, "busy");
        running.signal(first);
        let running = running.says(BUTTON);
        // Sooner, it would be the same request: timeout(1) sends its signal twice.
        running.signal(first);
        std::thread::sleep(Duration::from_millis(600));
        let start = Instant::now();
        running.signal(second);
        let outcome = running.wait().exits(8);
        // Not a limit of speed: with the grace that a first signal gives it would be 5 s.
        assert!(start.elapsed() < Duration::from_secs(4), "it did not wait for the guest");
        assert!(outcome.stderr.ends_with("tinyvmm: stopped by a signal\n"), "{}", outcome.stderr);
        outcome.leaves_nothing();
    }
}

#[test]
fn a_guest_that_only_ever_reboots_can_be_stopped() {
    let running = running(guests::acpi_reset, "boot 1\nboot 1\n");
    running.signal(libc::SIGTERM);
    let outcome = running.says(BUTTON).wait().exits(8);
    assert!(outcome.stderr.ends_with("tinyvmm: stopped by a signal\n"), "{}", outcome.stderr);
}

#[test]
fn a_guest_that_reboots_before_all_its_cpus_run_can_be_stopped() {
    // The first CPU resets before the last has started: a reset is always reported.
    let vmm = || Vmm::new().guest(guests::i8042_reset).args(["--cpus", "64"]);
    vmm().args(["--timeout", "1s"]).run().exits(7).says(&["--timeout is over"]);
    let running = vmm().args(["--log-level", "info"]).start().says("starting it again");
    running.signal(libc::SIGTERM);
    running.wait().exits(8);
}

#[test]
fn a_time_limit_counts_while_the_guest_is_asked_to_power_off() {
    let args = ["--timeout", "1s", "--log-level", "info"];
    let running = Vmm::new().guest(guests::idle).args(args).start().prints("idle");
    running.signal(libc::SIGTERM);
    let outcome = running.says(BUTTON).wait().exits(7);
    assert!(outcome.stderr.contains("--timeout is over"), "{}", outcome.stderr);
}

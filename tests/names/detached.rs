//! `--detach`: when it returns, and how.

use std::fs;

use super::{User, up};
use crate::guests::{self, guest};

guest!(
    /// Prints what a kernel prints before init, and sleeps for ever.
    starts_init,
    r#"say "Run /init as init process\n""#,
    "sleep",
);

guest!(
    /// Reports that init runs, waits for a byte, and panics.
    panics_later,
    "out8 {report}, 1",
    r#"say "up\n""#,
    "mov edx, {com1} + 5",
    "2: in al, dx",
    "test al, 1",
    "jz 2b",
    r#"say "Kernel panic - not syncing: late\n""#,
    "out8 {reset}, 1",
    "sleep",
);

#[test]
fn it_returns_when_init_runs() {
    let user = User::new();
    for code in [up, starts_init] {
        user.detached("vm", code);
        assert_eq!(user.state("vm"), "running");
        user.run(&["stop", "vm", "--timeout", "0s"]).exits(0).silently();
        assert!(user.folders().is_empty());
    }
}

#[test]
fn a_machine_without_a_name_gets_one() {
    let user = User::new();
    let names = [(), ()].map(|()| {
        let outcome = user.vmm().guest(up).args(["--detach"]).run().exits(0).silently();
        let text = String::from_utf8(outcome.stdout).unwrap();
        text.strip_suffix('\n').expect("a line").to_owned()
    });
    assert_ne!(names[0], names[1]);
    for name in names {
        assert_eq!(user.state(&name), "running");
        user.run(&["logs", &name]).exits(0).prints("up\n").silently();
    }
}

#[test]
fn a_guest_that_shows_no_init_is_left_to_itself() {
    let user = User::new();
    user.detached("vm", guests::idle);
    assert_eq!(user.state("vm"), "running");
}

#[test]
fn a_machine_that_fails_before_returns_its_reason_and_exit_code() {
    let user = User::new();
    let detached = |code| user.vmm().guest(code).args(["-d", "--name", "vm"]);
    detached(guests::triple_fault).run().exits(5).says(&["triple fault"]);
    detached(guests::panic_and_acpi_reset).run().exits(6).says(&["kernel panic"]);
    // What it has printed is there, until another takes its place.
    assert_eq!(user.state("vm"), "failed");
    user.run(&["ps"]).exits(0).prints("failed: kernel panic in the guest");
    user.run(&["logs", "vm"]).exits(0).prints("not syncing: test").silently();
    detached(guests::hello).run().exits(0).silently();
    assert!(user.folders().is_empty(), "it has powered off");
    let missing = user.vmm().args(["-d", "--name", "vm", "--kernel", "missing"]);
    missing.run().refuses(3, &["kernel missing"]);
    assert!(user.folders().is_empty());
    let _running = user.machine("vm", guests::idle, "idle");
    detached(up).run().refuses(3, &["--name vm", "runs"]);
}

#[test]
fn a_machine_that_fails_later_keeps_its_log_and_its_reason() {
    let user = User::new();
    user.detached("vm", panics_later);
    let typed = user.0.path("typed");
    fs::write(&typed, "x").unwrap();
    let attached = user.vmm().args(["attach", "vm"]).stdin(fs::File::open(&typed).unwrap());
    attached.run().exits(0).prints("not syncing: late");
    while user.state("vm") == "running" || user.state("vm") == "silent" {}
    assert_eq!(user.ps()[0]["end"], "kernel panic in the guest");
    user.run(&["logs", "vm", "--follow"]).exits(0).prints("not syncing: late").silently();
    user.run(&["stop", "vm", "--timeout", "0s"]).exits(0).silently();
    assert!(user.folders().is_empty());
}

#[test]
fn it_outlives_its_terminal_and_reads_no_input() {
    let user = User::new();
    let terminal = crate::terminal::Terminal::new();
    let vmm = crate::fixture::Vmm::started_by(&["setsid", "--ctty", "--wait"]);
    let vmm = vmm.env("XDG_RUNTIME_DIR", &user.0.0).guest(up).args(["-d", "--name", "vm"]);
    terminal.start(vmm).wait().exits(0);
    drop(terminal);
    assert_eq!(user.state("vm"), "running");
    user.run(&["ctl", "vm", "status"]).exits(0);
}

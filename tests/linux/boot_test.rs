//! `tinyvmm boot-test` with stock kernels: what a kernel team would run on every commit.

use serde_json::Value;

use super::{CLOUD_BZIMAGE, CLOUD_ELF, IN_A_BOX, Kernel};
use crate::fixture::{Outcome, Vmm};

/// Runs machines described by `machines`, whose kernel and initrd are `kernel`'s, one at a time.
fn run(kernel: Kernel, machines: &str) -> Outcome {
    let (path, initrd) = (kernel.path(), kernel.initrd());
    let defaults = format!("[defaults]\nkernel = {path:?}\ninitrd = {initrd:?}\ntimeout = '5m'\n");
    let flags = ["boot-test", "spec.toml", "--jobs=1", "--json=results.json"];
    let spec = format!("{defaults}{machines}");
    Vmm::new().patiently(2 * IN_A_BOX).file("spec.toml", spec).args(flags).run()
}

fn results(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.file("results.json")).unwrap()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn linux_shows_what_is_expected_and_runs_a_command() {
    let machines = r##"
[[machine]]
name = "boots"
cmdline = '-- "echo said=$((6 * 7))"'
expect = ["Linux version [56]", { pattern = "tinyvmm-init: up after", timeout = "4m" }, "^said=42$"]
end = "power-off"

[[machine]]
name = "shell"
cmdline = "quiet"
expect = ["# $"]

[[machine]]
name = "command"
run = "test $(nproc) = 2 && echo out && echo err >&2 && exit 7"
exit-status = 7
expect = ["^out$", "^err$"]
cpus = 2
"##;
    run(CLOUD_ELF, machines).exits(0).prints("3 passed in ");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn linux_ends_as_it_is_to() {
    let machines = r##"
[[machine]]
name = "reboots"
cmdline = 'quiet -- "reboot -f"'
end = "reboot"

[[machine]]
name = "panics"
cmdline = 'quiet -- "echo c > /proc/sysrq-trigger"'
expect = "Kernel panic - not syncing: sysrq triggered crash"
end = "panic"
"##;
    run(CLOUD_ELF, machines).exits(0).prints("2 passed in ");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_linux_costs_is_measured() {
    let machines = r##"
[[machine]]
name = "true"
run = ["true"]
repeat = 2
matrix = { mem = ["128M", "256M"] }
[machine.budget]
exits = 1000000
init-exits = { p99 = 1000000 }
init-ms = 120000
memory-mib = 256
instructions = 1
"##;
    let outcome = run(CLOUD_ELF, machines);
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let json = results(&outcome.exits(0).prints("2 passed in "));
    for test in json["tests"].as_array().unwrap() {
        assert_eq!(test["runs"].as_array().unwrap().len(), 2, "{text}");
        for figure in ["init-ms", "init-exits", "exits", "memory-mib"] {
            assert!(test["figures"][figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {text}");
        }
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_goes_wrong_in_linux_is_reported() {
    let machines = r##"
[[machine]]
name = "panic"
cmdline = 'quiet -- "echo c > /proc/sysrq-trigger"'

[[machine]]
name = "command-fails"
run = ["sh", "-c", "exit 3"]

[[machine]]
name = "command-cut-short"
run = "echo c > /proc/sysrq-trigger; sleep 60"
fail-on = []

[[machine]]
name = "too-many-exits"
run = ["true"]
budget = { exits = 10 }

[[machine]]
name = "never-comes"
cmdline = "quiet"
expect = ["up after", { pattern = "login:", timeout = "2s" }]
"##;
    let outcome = run(CLOUD_BZIMAGE, machines).exits(1).prints("0 passed, 5 failed in ");
    let json = results(&outcome);
    let reason = |index: usize| json["tests"][index]["reasons"][0].as_str().unwrap();
    assert!(reason(0).starts_with("the console shows '"), "{}", reason(0));
    assert_eq!(reason(1), "the exit status is to be 0: exit status 3");
    let panic = "the machine ended before its command: panic (kernel panic in the guest)";
    assert_eq!(reason(2), panic);
    assert!(reason(3).starts_with("exits is ") && reason(3).ends_with("the budget is 10"));
    assert_eq!(reason(4), "'login:' was not seen within 2s (after 'up after')");
    let log = outcome.file("boot-test-logs/panic.log");
    assert!(
        log.contains("sysrq triggered crash") && log.contains("boot-test: failed: the console"),
        "{log}"
    );
}

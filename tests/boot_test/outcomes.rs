//! Which machines pass or fail, and the reasons.

use super::{boot_test, fails, logs, one, passes, reports, row};

#[test]
fn a_machine_that_powers_off_passes() {
    let outcome = passes(&one("kernel = 'hello'")).prints("1 passed in ");
    assert!(row(&outcome, "m").starts_with("passed "), "{}", row(&outcome, "m"));
}

#[test]
fn expected_lines_are_seen_and_the_machine_is_stopped() {
    passes(&one("kernel = 'idle'\nexpect = 'up'"));
    passes(&one("kernel = 'idle'\nexpect = ['^up$']"));
    // A prompt is a line that does not end.
    passes(&one("kernel = 'prompt'\nexpect = ['up', { pattern = 'login: $', timeout = '30s' }]"));
}

#[test]
fn expected_lines_and_an_end() {
    let expect = "expect = ['^Linux [0-9.]+$', 'up', 'running', 'bye']";
    passes(&one(&format!("kernel = 'hello'\n{expect}\nend = 'power-off'")));
    passes(&one("kernel = 'reset'\nexpect = 'resetting'\nend = 'reboot'"));
    let why = ["the end is to be 'reboot': power-off"];
    fails(&one(&format!("kernel = 'hello'\n{expect}\nend = 'reboot'")), &why);
}

#[test]
fn the_order_counts() {
    let keys = "kernel = 'hello'\nexpect = ['up', 'Linux']\nend = 'power-off'";
    fails(&one(keys), &["'Linux' was not seen before the end: power-off (after 'up')"]);
    let keys = "kernel = 'hello'\nexpect = ['up', 'up']\nend = 'power-off'";
    fails(&one(keys), &["'up' was not seen before the end: power-off (after 'up')"]);
}

#[test]
fn every_end_can_be_wanted() {
    passes(&one("kernel = 'reset'\nend = 'reboot'"));
    passes(&one("kernel = 'panic'\nend = 'panic'"));
    passes(&one("kernel = 'triple'\nend = 'triple-fault'"));
    passes(&one("kernel = 'idle'\nend = 'timeout'\ntimeout = '500ms'"));
}

#[test]
fn a_guest_can_end_with_a_status() {
    passes(&one("kernel = 'status'\nexit-status = 42"));
    fails(&one("kernel = 'status'\nexit-status = 1"), &["to be 1: exit status 42"]);
    fails(&one("kernel = 'status'"), &["to be 'power-off': exit status 42"]);
    // A reboot has the exit code 4, and is no status.
    let outcome = fails(&one("kernel = 'reset'\nexit-status = 4"), &["to be 4: reboot"]);
    outcome.prints("(the guest rebooted)");
}

#[test]
fn a_command_that_is_not_run_is_no_success() {
    let spec = one("kernel = 'hello'\ninitrd = 'hello'\nrun = 'true'");
    fails(&spec, &["the machine ended before its command: power-off (the guest powered off)"]);
    let spec = one("kernel = 'missing'\ninitrd = 'hello'\nrun = ['true']\nexit-status = 3");
    fails(&spec, &["the machine ended before its command: it could not start ("]);
}

#[test]
fn another_end_is_reported_with_tinyvmms_words() {
    fails(&one("kernel = 'reset'"), &["to be 'power-off': reboot (the guest rebooted)"]);
    fails(&one("kernel = 'triple'"), &["triple-fault (triple fault in the guest"]);
    fails(&one("kernel = 'missing'"), &["it could not start (", "missing", "No such file"]);
    let spec = one("kernel = 'idle'\ntimeout = '500ms'");
    fails(&spec, &["to be 'power-off': it took longer than 500ms"]);
    let spec = one("kernel = 'idle'\nexpect = ['up', 'down']\ntimeout = '500ms'");
    fails(&spec, &["'down' was not seen before the end: it took longer than 500ms (after 'up')"]);
}

#[test]
fn a_pattern_has_its_own_time() {
    let pattern = "{ pattern = 'down', timeout = '300ms' }";
    let spec = one(&format!("kernel = 'idle'\nexpect = ['up', {pattern}]"));
    fails(&spec, &["'down' was not seen within 300ms (after 'up')"]);
}

#[test]
fn failures_of_a_kernel_are_found() {
    fails(&one("kernel = 'bug'"), &[r"the console shows '\bBUG:': BUG: kernel NULL pointer"]);
    let outcome = fails(&one("kernel = 'panic'"), &["shows 'Kernel panic': Kernel panic - not"]);
    outcome.prints("log: ").prints("/boot-test-logs/m.log");
    // A pattern that was seen before the last one does not count.
    let after = one("kernel = 'bug'\nexpect = ['up', 'Call Trace']");
    fails(&after, &[r"the console shows '\bBUG:'"]);
    // DEBUG is no bug.
    passes(&one("kernel = 'again'"));
}

#[test]
fn what_fails_can_be_chosen() {
    passes(&one("kernel = 'warning'"));
    fails(&one("kernel = 'warning'\nfail-on-warning = true"), &["WARNING: CPU: 0"]);
    fails(&one("kernel = 'hello'\nfail-on = ['and running$']"), &["shows 'and running$'"]);
    passes(&one("kernel = 'bug'\nfail-on = []\nexpect = 'Call Trace'"));
}

#[test]
fn a_failure_ends_with_its_last_words() {
    let outcome = fails(&one("kernel = 'bug'"), &["1 failed"]);
    let log = outcome.file("boot-test-logs/m.log");
    assert!(log.contains("Call Trace:\n"), "{log}");
    assert!(log.ends_with("[tinyvmm boot-test: failed: the console shows '\\bBUG:': BUG: kernel NULL pointer dereference]\n"), "{log}");
}

#[test]
fn a_flood_neither_fills_the_disk_nor_holds_the_runner_up() {
    let outcome = fails(&one("kernel = 'flood'\ntimeout = '3s'"), &["it took longer than 3s"]);
    let log = outcome.file("boot-test-logs/m.log");
    assert!(log.len() < (16 << 20) + 4096, "{} bytes", log.len());
    passes(&one("kernel = 'flood'\nexpect = 'xxxxxx'"));
}

#[test]
fn what_a_guest_prints_does_not_reach_the_users_terminal_raw() {
    let spec = one("kernel = 'evil'\nfail-on = 'title'");
    let evil =
        super::printing("\u{1b}[2J\u{1b}]0;x\u{7}a\u{9b}2J <title> & \u{8}\n", super::Then::Sleep);
    let flags = ["--junit", "results.xml"];
    let outcome = reports(boot_test(&spec).file("evil", evil).args(flags).run().exits(1));
    let outcome = outcome.prints("the console shows 'title': a2J <title> &\n");
    let stdout = String::from_utf8(outcome.stdout.clone()).unwrap();
    for text in [&stdout, &outcome.stderr] {
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
    assert!(stdout.contains("\nthe console of m ends with:\n    a2J <title> &"), "{stdout}");
    let xml = outcome.file("results.xml");
    assert!(xml.contains("&lt;title&gt; &amp;"), "{xml}");
    assert!(!xml.contains(|c: char| c.is_ascii_control() && c != '\n'), "{xml:?}");
}

#[test]
fn only_a_failed_machine_keeps_its_log() {
    let machine =
        |name: &str, kernel| format!("[[machine]]\nname = '{name}'\nkernel = '{kernel}'\n");
    let spec = [machine("good", "hello"), machine("bad", "reset")].concat();
    let spec = format!("[defaults]\nmem = '32M'\n{spec}");
    let outcome = boot_test(&spec).run().exits(1).prints("1 passed, 1 failed in ");
    assert!(row(&outcome, "good").starts_with("passed "));
    assert!(row(&outcome, "bad").starts_with("failed "));
    assert_eq!(logs(outcome.dir()), ["bad.log"]);
    assert!(outcome.file("boot-test-logs/bad.log").starts_with("resetting\n"));
}

#[test]
fn a_spec_may_be_elsewhere_and_its_files_are_beside_it() {
    let vmm = boot_test(&one("kernel = 'hello'"));
    let spec = vmm.dir().path("spec.toml");
    let other = crate::fixture::Vmm::new().args(["boot-test".as_ref(), spec.as_os_str()]);
    reports(other.run().exits(0)).leaves_nothing();
}

#[test]
fn a_failure_has_all_its_reasons() {
    let keys = "kernel = 'reset'\nexpect = ['up']\nend = 'power-off'";
    let spec = one(keys);
    let reasons = [
        "'up' was not seen before the end: reboot (the guest rebooted)",
        "the end is to be 'power-off': reboot",
    ];
    let outcome = fails(&spec, &reasons);
    assert!(reasons.iter().all(|reason| outcome.stderr.contains(reason)), "{}", outcome.stderr);
    let figures = "budget = { init-ms = 1, init-exits = 1 }";
    let spec = one(&format!("kernel = 'hello'\n{figures}"));
    let outcome = fails(&spec, &["init-ms was not measured", "init-exits was not measured"]);
    assert!(outcome.stderr.contains("failed: init-ms was"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("; init-exits was"), "{}", outcome.stderr);
}

#[test]
fn a_failure_shows_how_its_console_ends() {
    let text: String = (1..=30).map(|line| format!("line {line} {}\n", "x".repeat(300))).collect();
    let long = super::printing(&text, super::Then::PowerOff);
    let spec = "[defaults]\nmem = '32M'\n\
        [[machine]]\nname = 'long'\nkernel = 'long'\nend = 'reboot'\n[[machine]]\nname = 'good'\nkernel = 'hello'\n";
    let outcome = boot_test(spec).file("long", long).run().exits(1);
    let stdout = String::from_utf8(outcome.stdout).unwrap();
    let console: Vec<&str> = stdout.lines().filter(|line| line.starts_with("    line")).collect();
    assert_eq!(console.len(), 15, "{stdout}");
    assert!(console[14].starts_with("    line 30 x") && console[14].len() == 204, "{stdout}");
    assert_eq!(stdout.matches("the console of").count(), 1, "{stdout}");
    assert!(stdout.lines().last().unwrap().starts_with("1 passed, 1 failed in "), "{stdout}");
}

#[test]
fn what_keeps_many_machines_from_starting_is_shown_once() {
    let spec = one("matrix = { kernel = ['missing'], cpus = [1, 2, 3] }");
    let outcome = fails(&spec, &["it could not start, as 'm[kernel=missing,cpus=1]'", "3 failed"]);
    let stdout = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!(stdout.matches("No such file").count(), 1, "{stdout}");
    assert_eq!(outcome.stderr.matches("No such file").count(), 1, "{}", outcome.stderr);
    assert!(!stdout.contains("the console of"), "{stdout}");
}

#[test]
fn a_commands_status_may_be_any() {
    // tinyvmm's exit code for a missing status is no status.
    let spec = one("kernel = 'hello'\ninitrd = 'hello'\nrun = 'true'\nexit-status = 125");
    fails(&spec, &["the machine ended before its command: power-off"]);
}

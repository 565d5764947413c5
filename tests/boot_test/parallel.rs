//! Machines side by side, signals, and what becomes of machines when the runner is killed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{boot_test, logs, reports};
use crate::fixture::{Running, Vmm};

/// Five machines that sleep until they are stopped.
fn sleepers(keys: &str) -> String {
    let machines = (0..5).map(|n| format!("[[machine]]\nname = 's{n}'\nkernel = 'idle'\n{keys}\n"));
    let defaults = "[defaults]\nmem = '32M'\ntimeout = '1500ms'\nend = 'timeout'\n";
    format!("{defaults}{}", machines.collect::<String>())
}

/// Machines that run now: children of the runner.
fn children(pid: &Path) -> usize {
    let tasks = fs::read_dir(pid.join("task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.map(|list| list.split_whitespace().count()).sum()
}

/// The most machines that ran at one time until the end.
fn most_at_once(vmm: Vmm) -> usize {
    let running = vmm.start();
    let proc = running.proc("");
    let watcher = thread::spawn(move || {
        let mut most = 0;
        while proc.exists() && fs::read_link(proc.join("exe")).is_ok() {
            most = most.max(children(&proc));
            thread::sleep(Duration::from_millis(10));
        }
        most
    });
    reports(running.wait().exits(0)).prints("5 passed").leaves_nothing();
    watcher.join().unwrap()
}

#[test]
fn as_many_run_at_once_as_there_are_cpus_for() {
    assert_eq!(most_at_once(boot_test(&sleepers("")).args(["--jobs", "3"])), 3);
    assert_eq!(most_at_once(boot_test(&sleepers("cpus = 2")).args(["--jobs", "5"])), 2);
}

#[test]
fn a_machine_of_too_many_cpus_runs_alone() {
    assert_eq!(most_at_once(boot_test(&sleepers("cpus = 4")).args(["--jobs", "3"])), 1);
    assert_eq!(most_at_once(boot_test(&sleepers("alone = true")).args(["--jobs", "5"])), 1);
}

#[test]
fn machines_that_write_to_the_same_disk_take_turns() {
    let run = |disk: &str| {
        let spec = sleepers(&format!("disk = ['{disk}']"));
        most_at_once(boot_test(&spec).sparse_file("disk", 1 << 20).args(["--jobs", "3"]))
    };
    assert_eq!(run("disk"), 1);
    assert_eq!(run("disk,readonly"), 3);
}

fn interruptible() -> Running {
    let spec = sleepers("").replace("1500ms", "60s");
    let vmm = boot_test(&spec).args(["--jobs", "2", "--json", "results.json"]);
    // Before there are logs the runner's children check the spec.
    let has_log = |running: &Running| running.dir().path("boot-test-logs/s1.log").exists();
    vmm.start().until(|running| has_log(running) && children(&running.proc("")) == 2)
}

#[test]
fn a_signal_stops_the_machines_and_reports_what_was_done() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let running = interruptible();
        let start = Instant::now();
        running.signal(signal);
        let outcome = running.wait().exits(1).prints("0 passed, 5 not run");
        // Not a limit of speed: the machines' own ends are a minute away.
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(outcome.stderr, "tinyvmm: interrupted: not all machines were run\n");
        let json: serde_json::Value = serde_json::from_str(&outcome.file("results.json")).unwrap();
        assert_eq!(json["interrupted"], true);
        assert_eq!(json["tests"][0]["result"], "not-run");
        assert_eq!(json["tests"][4]["runs"], serde_json::json!([]));
        // The consoles of interrupted machines are kept.
        assert_eq!(logs(outcome.dir()), ["s0.log", "s1.log"]);
    }
}

#[test]
fn signals_that_a_supervisor_blocks_stop_the_machines() {
    let spec = sleepers("").replace("1500ms", "60s");
    let vmm = Vmm::started_by(&["env", "--block-signal=TERM"]).file("spec.toml", spec);
    let vmm = vmm.file("idle", super::printing("up\n", super::Then::Sleep));
    let running = vmm.args(["boot-test", "spec.toml", "--jobs", "1"]).start();
    let running = running.until(|running| running.dir().path("boot-test-logs/s0.log").exists());
    running.signal(libc::SIGTERM);
    running.wait().exits(1).says(&["interrupted"]).prints("0 passed, 5 not run");
}

#[test]
fn a_line_is_printed_as_each_machine_ends() {
    let spec = "[defaults]\nmem = '32M'\n\
        [[machine]]\nname = 'slow'\nkernel = 'idle'\nend = 'timeout'\ntimeout = '60s'\n\
        [[machine]]\nname = 'quick'\nkernel = 'reset'\n";
    let running = boot_test(spec).args(["--jobs", "2"]).start();
    // While the other one still runs.
    let running = running.says("tinyvmm: [1/2] quick: failed: the end is to be 'power-off'");
    running.signal(libc::SIGTERM);
    running.wait().exits(1).prints("0 passed, 1 failed, 1 not run in ");
}

#[test]
fn machines_die_with_the_runner() {
    let running = interruptible();
    let dir = fs::read_link(running.proc("cwd")).unwrap();
    running.signal(libc::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(30);
    let left = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
            .count()
    };
    while left() > 0 {
        assert!(Instant::now() < deadline, "{} machines are left behind", left());
        thread::sleep(Duration::from_millis(10));
    }
}

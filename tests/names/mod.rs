//! Machines with names: their folders, and what is done with them by name.

mod at_once;
mod consoles;
mod detached;
mod folders;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::{Dir, Outcome, Running, Vmm};
use crate::guests::{self, guest};

guest!(
    /// Prints "up", reports that init runs, and sleeps for ever.
    up,
    r#"say "up\n""#,
    "out8 {report}, 1",
    "sleep",
);

/// A user with a runtime folder. Dropping it stops its machines.
struct User(Dir);

impl User {
    fn new() -> Self {
        Self(Dir::new())
    }

    fn vmm(&self) -> Vmm {
        Vmm::new().env("XDG_RUNTIME_DIR", &self.0.0)
    }

    /// Runs a sub-command.
    #[track_caller]
    fn run(&self, args: &[&str]) -> Outcome {
        self.vmm().args(args).run()
    }

    /// A machine in the foreground that has printed `text`.
    #[track_caller]
    fn machine(&self, name: &str, code: fn() -> Vec<u8>, text: &str) -> Running {
        self.vmm().guest(code).args(["--name", name]).start().prints(text)
    }

    /// A machine in the background.
    #[track_caller]
    fn detached(&self, name: &str, code: fn() -> Vec<u8>) {
        self.vmm().guest(code).args(["-d", "--name", name]).run().exits(0).silently();
    }

    /// The folder of all machines.
    fn machines(&self) -> PathBuf {
        self.0.path("tinyvmm")
    }

    fn file(&self, machine: &str, file: &str) -> PathBuf {
        self.machines().join(machine).join(file)
    }

    /// Names of the machines' folders.
    fn folders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.machines()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[track_caller]
    fn ps(&self) -> Vec<Value> {
        let outcome = self.run(&["ps", "--json"]).exits(0).silently();
        serde_json::from_slice(&outcome.stdout).unwrap()
    }

    #[track_caller]
    fn state(&self, name: &str) -> String {
        let all = self.ps();
        let row = all.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {all:?}"))["state"].as_str().unwrap().to_owned()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for name in self.folders() {
            self.run(&["stop", &name, "--timeout", "0s"]);
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_machine_has_a_folder_of_its_users_alone_until_it_ends() {
    let user = User::new();
    let running = user.machine("vm", guests::obedient, "ready");
    assert_eq!((mode(&user.machines()), mode(&user.machines().join("vm"))), (0o700, 0o700));
    for file in ["api.sock", "console.sock", "console.log", "machine.json"] {
        assert_eq!(mode(&user.file("vm", file)), 0o600, "{file}");
    }
    user.run(&["ctl", "vm", "power-button"]).exits(0).silently();
    running.wait().exits(0).prints("button").silently().leaves_nothing();
    assert!(user.folders().is_empty());
    assert_eq!(user.ps(), [] as [Value; 0]);
}

#[test]
fn a_name_that_is_in_use_is_refused_and_free_after_the_end() {
    let user = User::new();
    let first = user.machine("vm", guests::idle, "idle");
    let second = || user.vmm().guest(guests::idle).args(["--name", "vm"]);
    second().run().refuses(3, &["--name vm", "runs", "tinyvmm stop vm"]);
    assert_eq!(user.state("vm"), "running", "the first one's folder is untouched");
    let other = user.machine("vm-2", guests::idle, "idle");
    first.signal(libc::SIGKILL);
    drop(first);
    second().start().prints("idle").signal(libc::SIGKILL);
    drop(other);
}

#[test]
fn what_a_killed_machine_leaves_is_no_machine_and_is_taken_over() {
    let user = User::new();
    let running = user.machine("vm", guests::idle, "idle");
    // Its log is written a moment after its terminal.
    while user.run(&["logs", "vm"]).exits(0).stdout != b"idle\n" {}
    running.signal(libc::SIGKILL);
    drop(running);
    assert_eq!(user.state("vm"), "killed");
    user.run(&["ctl", "vm", "status"]).refuses(1, &["no machine listens"]);
    user.run(&["attach", "vm"]).refuses(1, &["vm", "has ended", "tinyvmm logs vm"]);
    user.run(&["logs", "vm", "-f"]).exits(0).prints("idle\n").silently();
    let running = user.machine("vm", guests::obedient, "ready");
    assert_eq!(user.state("vm"), "running");
    let log = user.run(&["logs", "vm"]).exits(0).silently();
    assert_eq!(log.stdout, b"ready\n", "the log begins anew");
    running.signal(libc::SIGTERM);
    running.wait().exits(0);
    assert!(user.folders().is_empty());
    user.run(&["logs", "vm"]).refuses(1, &["vm", "no such machine", "tinyvmm ps"]);
}

#[test]
fn a_start_that_fails_leaves_no_folder() {
    let user = User::new();
    let vmm = user.vmm().args(["--name", "vm", "--kernel", "missing"]);
    vmm.run().refuses(3, &["kernel missing"]);
    assert!(user.folders().is_empty());
}

#[test]
fn two_hundred_that_are_killed_leave_nothing_that_the_next_does_not_take_over() {
    let user = User::new();
    for _ in 0..200 {
        let vmm = user.vmm().guest(guests::idle).args(["--name", "vm", "--mem", "16M"]);
        let running = vmm.start().prints("idle");
        running.signal(libc::SIGKILL);
        drop(running);
    }
    assert_eq!(user.folders(), ["vm"]);
    let running = user.machine("vm", guests::obedient, "ready");
    running.signal(libc::SIGTERM);
    running.wait().exits(0).leaves_nothing();
    assert!(user.folders().is_empty());
}

#[test]
fn ps_lists_machines_with_their_states() {
    let user = User::new();
    assert_eq!(
        user.run(&["ps"]).exits(0).silently().stdout.iter().filter(|b| **b == b'\n').count(),
        1
    );
    let vmm = user.vmm().guest(guests::idle).args(["--name", "b", "--cpus", "2", "--mem", "32M"]);
    let b = vmm.start().prints("idle");
    let waiting = user.vmm().args(["--name", "a"]).start();
    let waiting = waiting.until(|_| user.file("a", "api.sock").exists());
    user.run(&["ctl", "b", "pause"]).exits(0);
    let rows = user.ps();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"], "sorted");
    let row = &rows[1];
    assert_eq!((&row["state"], &row["cpus"]), (&"paused".into(), &2.into()));
    assert_eq!((&row["memory_kib"], &row["ports"]), (&(32 << 10).into(), &Value::Array(vec![])));
    assert!(row["resident_kib"].as_u64().unwrap() > 100, "{row}");
    assert!(row["uptime_s"].is_u64() && row["end"].is_null(), "{row}");
    assert_eq!(user.state("a"), "waiting");
    b.signal(libc::SIGSTOP);
    let text = user.run(&["ps"]).exits(0).silently();
    let text = String::from_utf8(text.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("b ")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[..5], ["b", "silent", "2", "32M", "-"], "{text}");
    assert!(text.starts_with("NAME  STATE"), "{text}");
    b.signal(libc::SIGCONT);
    waiting.signal(libc::SIGTERM);
    waiting.wait().exits(8);
}

#[test]
fn a_name_stands_for_its_socket() {
    let user = User::new();
    let _running = user.machine("vm", guests::idle, "idle");
    let outcome = user.run(&["ctl", "vm", "status", "--json"]).exits(0).silently();
    let status: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!((&status["id"], &status["state"]), (&"vm".into(), &"Running".into()));
    let path = user.file("vm", "api.sock");
    user.run(&["ctl", path.to_str().unwrap(), "status"]).exits(0).silently();
    user.run(&["ctl", "wm", "status"]).refuses(1, &["wm", "no such machine", "tinyvmm ps"]);
    let words = user.run(&["complete", "--", "logs", ""]).exits(0).silently();
    assert_eq!(words.stdout, b"vm\n");
    let words = user.run(&["complete", "--", "ctl", ""]).exits(0).silently();
    assert_eq!(words.stdout, b"vm\n\tfiles\n");
    let named = user.vmm().guest(guests::idle).args(["--name", "x", "--id", "y"]).start();
    let _named = named.prints("idle");
    user.run(&["ctl", "x", "status"]).exits(0).prints("y");
}

#[test]
fn stop_has_a_guest_power_off_and_ends_one_that_does_not() {
    let user = User::new();
    let running = user.machine("vm", guests::obedient, "ready");
    user.run(&["stop", "vm"]).exits(0).silently();
    running.wait().exits(0).prints("button").silently().leaves_nothing();
    let running = user.machine("vm", guests::idle, "idle");
    user.run(&["stop", "vm", "--timeout", "1s"]).exits(0).silently();
    running.wait().exits(8).says(&["stopped over the API"]);
    // One that cannot react is not waited for.
    let running = user.machine("vm", guests::idle, "idle");
    user.run(&["ctl", "vm", "pause"]).exits(0);
    user.run(&["stop", "vm", "--timeout", "1h"]).exits(0).silently();
    running.wait().exits(8);
    assert!(user.folders().is_empty());
    user.run(&["stop", "vm"]).refuses(1, &["vm", "no such machine"]);
}

#[test]
fn stop_kills_a_process_that_hangs_and_clears_what_it_leaves() {
    let user = User::new();
    let running = user.machine("vm", guests::idle, "idle");
    running.signal(libc::SIGSTOP);
    user.run(&["stop", "vm"]).exits(0).silently();
    assert!(user.folders().is_empty());
    // One that is dead already.
    let running = user.machine("vm", guests::idle, "idle");
    running.signal(libc::SIGKILL);
    drop(running);
    user.run(&["stop", "vm"]).exits(0).silently();
    assert!(user.folders().is_empty());
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (args, words) in [
        (["--name", "a/b"].as_slice(), ["--name a/b", "letters"].as_slice()),
        (&["--name=-a"], &["--name", "letters"]),
        (&["--name", ".."], &["--name ..", "letters"]),
        (&["--name", "vm", "--api-sock", "x"], &["--name", "--api-sock", "leave one out"]),
        (&["--name", "vm", "--jail", "user=5"], &["--name and --jail", "leave one out"]),
        (&["-d", "--trace-exits"], &["--detach", "--boot-report=FILE"]),
        (&["-d", "--boot-report"], &["--detach", "--boot-report=FILE"]),
    ] {
        Vmm::new().guest(guests::idle).args(args).run().refuses(2, words);
    }
    Vmm::new().args(["--detach"]).run().refuses(2, &["--kernel FILE"]);
    Vmm::new().args(["stop", "a/b"]).run().refuses(2, &["stop a/b", "letters"]);
}

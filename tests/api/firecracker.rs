//! A process under the name `firecracker`.

use serde_json::{Value, json};

use super::{Client, SOCKET, listening};
use crate::fixture::{Running, Vmm};
use crate::guests::{self, guest};

const START: &str = r#"{"action_type":"InstanceStart"}"#;

guest!(
    /// Writes twice to Firecracker's boot timer that it has booted, after a value that is ignored, and resets.
    boots_and_resets,
    "mov ebx, 0xc0000000",
    "mov byte ptr [rbx], 1",
    "mov dword ptr [rbx], 123",
    "mov byte ptr [rbx + 8], 123",
    "mov byte ptr [rbx], 123",
    "mov byte ptr [rbx], 123",
    r#"say "booted\n""#,
    "out8 {i8042}, 0xfe",
    "sleep",
);

/// A Firecracker with this kernel and a disk in its folder.
fn firecracker(code: fn() -> Vec<u8>) -> Vmm {
    let vmm = Vmm::named("firecracker").file("vmlinux", guests::elf(&code()));
    vmm.sparse_file("disk", 1 << 20)
}

/// A Firecracker whose machine is described in a file.
fn from_file(code: fn() -> Vec<u8>) -> Vmm {
    let file = json!({
        "boot-source": {"kernel_image_path": "vmlinux"},
        "drives": [{"drive_id": "d", "is_root_device": false, "path_on_host": "disk"}],
    });
    firecracker(code).file("vm.json", file.to_string()).args(["--config-file", "vm.json"])
}

/// A Firecracker that waits for the API.
fn waiting(code: fn() -> Vec<u8>, args: &[&str]) -> (Running, Client) {
    listening(firecracker(code).args(["--api-sock", SOCKET]).args(args).start())
}

#[test]
fn it_reports_its_version_as_clients_look_for_it() {
    let outcome = Vmm::named("firecracker").args(["--version"]).run().exits(0).silently();
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(text.starts_with("Firecracker v1.16.1\n") && text.contains("tinyvmm"), "{text}");
    Vmm::named("firecracker-v1.16.1-x86_64").args(["--help"]).run().exits(0).prints("--boot-timer");
}

#[test]
fn flags_that_cannot_be_honoured_are_refused_by_name() {
    let refused = |args: &[&str], code: i32, words: &[&str]| {
        Vmm::named("firecracker").args(args).run().refuses(code, words);
    };
    for flag in ["module", "metadata", "mmds-size-limit", "seccomp-filter", "describe-snapshot"] {
        refused(&[&format!("--{flag}"), "1"], 153, &[flag, "not supported", "leave it out"]);
    }
    for flag in ["--snapshot-version", "--enable-pci"] {
        refused(&[flag], 153, &[flag, "not supported", "leave it out"]);
    }
    refused(&["--legs", "2"], 153, &["--legs", "--help"]);
    refused(&["--kernel", "vmlinux"], 153, &["--kernel"]);
    refused(&["--no-api"], 153, &["--config-file"]);
    refused(&["--id", "a b"], 153, &["--id"]);
    refused(&["--start-time-us", "soon"], 153, &["--start-time-us"]);
    refused(&["--http-api-max-payload-size", "0"], 153, &["payload"]);
    refused(&["--no-seccomp", "--seccomp-filter", "f"], 153, &["--seccomp-filter"]);
    refused(&["--level", "Loud"], 152, &["--level Loud", "Debug"]);
}

#[test]
fn what_cannot_start_is_a_generic_error() {
    let missing = Vmm::named("firecracker").args(["--no-api", "--config-file", "none.json"]);
    missing.run().exits(1).says(&["none.json"]).leaves_nothing();
    let folder = from_file(guests::hello).args(["--no-api", "--log-path", "no/such/folder"]);
    folder.run().exits(1).says(&["--log-path", "no/such/folder"]).leaves_nothing();
    let pipe = from_file(guests::hello).args(["--no-api", "--metrics-path", "."]);
    pipe.run().exits(1).says(&["--metrics-path"]).leaves_nothing();
}

#[test]
fn a_guest_that_resets_or_breaks_down_ends_with_success_and_the_log_says_how() {
    let no_api = |code| from_file(code).args(["--no-api", "--id", "vm-1", "--show-level"]);
    let outcome = no_api(guests::acpi_reset).run().exits(0).prints("boot 1\n").silently();
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(text.contains(" [vm-1:main:INFO] Running tinyvmm "), "{text}");
    assert!(text.contains(" [vm-1:main:INFO] the guest rebooted"), "{text}");
    outcome.leaves_nothing();
    no_api(guests::triple_fault).run().exits(0).prints("[vm-1:main:WARN] triple fault");
    // A status that the guest chooses is no exit code of Firecracker's.
    no_api(guests::marks_and_exits_with_42).run().exits(1);
}

#[test]
fn messages_go_to_the_log_and_say_what_they_are_to() {
    let log = ["--no-api", "--log-path", "log", "--level", "info", "--show-log-origin"];
    let outcome = from_file(guests::hello).args(log).run().exits(0).silently();
    let text = outcome.file("log");
    let line = text.lines().last().unwrap();
    let (time, rest) = line.split_once(' ').unwrap();
    assert_eq!((time.len(), &time[10..11], &time[19..20]), (29, "T", "."), "{line}");
    assert!(rest.starts_with("[anonymous-instance:main:vmm/cli/src/firecracker.rs:"), "{line}");
    assert!(rest.ends_with("] the guest powered off"), "{line}");
    assert!(!String::from_utf8_lossy(&outcome.stdout).contains("powered off"));
    let quiet = from_file(guests::hello).args(["--no-api", "--level", "Warning"]).run().exits(0);
    assert!(!String::from_utf8_lossy(&quiet.stdout).contains("anonymous"));
}

#[test]
fn the_boot_timer_is_logged_once_and_only_if_it_is_there() {
    let lines = |args: &[&str]| {
        let vmm = from_file(boots_and_resets).args(["--no-api", "--log-path", "log"]).args(args);
        let outcome = vmm.run().exits(0).prints("booted");
        let text = outcome.file("log");
        text.lines()
            .filter(|line| line.contains("Guest-boot-time"))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let logged = lines(&["--boot-timer"]);
    assert_eq!(logged.len(), 1, "{logged:?}");
    let words: Vec<&str> =
        logged[0].split("Guest-boot-time = ").nth(1).unwrap().split_whitespace().collect();
    let [us, "us", ms, "ms,", cpu, "CPU", "us", _, "CPU", "ms"] = words[..] else {
        panic!("{logged:?}")
    };
    let (us, ms): (u64, u64) = (us.parse().unwrap(), ms.parse().unwrap());
    assert!(us > 0 && ms == us / 1000 && cpu.parse::<u64>().is_ok(), "{logged:?}");
    assert_eq!(lines(&[]), Vec::<String>::new());
}

#[test]
fn metrics_are_written_at_the_end_and_count_what_was_since_the_line_before() {
    let times =
        ["--start-time-us", "1", "--start-time-cpu-us", "0", "--parent-cpu-time-us", "1000000"];
    let (running, client) =
        waiting(guests::obedient, &[&["--metrics-path", "metrics"], &times[..]].concat());
    assert_eq!(client.get("/vm/config")["metrics"]["metrics_path"], "metrics");
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    let disk = r#"{"drive_id":"d","is_root_device":false,"path_on_host":"disk"}"#;
    client.does("PUT", "/drives/d", disk);
    client.does("PUT", "/actions", START);
    let running = running.prints("ready");
    client.does("PATCH", "/vm", r#"{"state":"Paused"}"#);
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    client.does("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
    client.does("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
    let outcome = running.wait().exits(0);
    let lines: Vec<Value> =
        outcome.file("metrics").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert!(line["latencies_us"]["pause_vm"].as_u64().unwrap() > 0, "{line}");
        assert!(line["api_server"]["process_startup_time_us"].as_u64().unwrap() > 1_000, "{line}");
        assert!(line["api_server"]["process_startup_time_cpu_us"].as_u64().unwrap() > 1_000_000);
        assert_eq!(line["block_d"]["read_count"], 0);
    }
}

#[test]
fn a_log_that_was_named_can_be_changed_over_the_api() {
    let (running, client) = waiting(guests::hello, &["--log-path", "first"]);
    client.does("PUT", "/logger", r#"{"level":"Debug","show_level":true}"#);
    client.does("PUT", "/logger", r#"{"log_path":"second"}"#);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    client.does("PUT", "/actions", START);
    let outcome = running.wait().exits(0).silently();
    assert!(!outcome.file("first").contains("powered off"));
    assert!(outcome.file("second").contains(":main:INFO] the guest powered off"));
    assert!(outcome.file("second").contains(":DEBUG] "), "it says all that it is asked for");
}

#[cfg(debug_assertions)]
#[test]
fn what_the_jail_forbids_ends_it_with_its_code_unless_there_is_no_jail() {
    let breaks_out =
        || from_file(guests::hello).args(["--no-api"]).env("TINYVMM_BREAK_OUT", "Main");
    breaks_out().run().exits(148).says(&["the jail", "openat"]);
    let free = breaks_out().args(["--no-seccomp"]).run().exits(0);
    assert!(free.stderr.contains("--no-jail"), "{}", free.stderr);
    assert!(std::fs::metadata(free.dir().path("vm.json")).is_ok());
}

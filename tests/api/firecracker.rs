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
fn it_reports_the_versions_of_snapshots() {
    let firecracker = || Vmm::named("firecracker");
    let latest = firecracker().args(["--snapshot-version"]).run().exits(0).silently();
    assert_eq!(String::from_utf8_lossy(&latest.stdout), "v3.0.0\n");
    let described = |state: &str| {
        firecracker().file("state", state).args(["--describe-snapshot", "state"]).run()
    };
    let outcome = described("tinyvmm snapshot 4\nof a later tinyvmm").exits(0).silently();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "v4.0.0\n");
    for (state, words) in [("", "it is no snapshot"), ("tinyvmm snapshot x\n", "it is damaged")] {
        described(state).refuses(1, &["--describe-snapshot", "state", words]);
    }
    let nowhere = firecracker().args(["--describe-snapshot", "nowhere"]);
    nowhere.run().refuses(1, &["nowhere", "No such file"]);
}

#[test]
fn flags_that_cannot_be_honoured_are_refused_by_name() {
    let refused = |args: &[&str], code: i32, words: &[&str]| {
        Vmm::named("firecracker").args(args).run().refuses(code, words);
    };
    for flag in ["module", "metadata", "mmds-size-limit", "seccomp-filter"] {
        refused(&[&format!("--{flag}"), "1"], 153, &[flag, "not supported", "leave it out"]);
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
fn a_pci_bus_that_is_asked_for_costs_one_line_of_the_log() {
    let outcome = from_file(guests::hello).args(["--no-api", "--enable-pci"]).run().exits(0);
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(text.matches("--enable-pci: devices stay on virtio-mmio").count(), 1, "{text}");
    assert!(text.contains("hello"), "{text}");
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
    let outcome = no_api(guests::acpi_reset).run().exits(0).silently();
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    // The log is there, too: a record may be within the guest's line.
    let of_guest = |line: &str| match line.find(" [vm-1:") {
        Some(at) => line[..at - "2026-11-28T10:04:45.123456789".len()].to_owned(),
        None => line.to_owned(),
    };
    let printed: String = text.split_inclusive('\n').map(of_guest).collect();
    assert_eq!(printed, "boot 1\n", "{text}");
    assert!(text.contains(" [vm-1:main:INFO] This is tinyvmm "), "{text}");
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
    let line = text.lines().find(|line| line.ends_with("] the guest powered off")).expect(&text);
    let (time, rest) = line.split_once(' ').unwrap();
    assert_eq!((time.len(), &time[10..11], &time[19..20]), (29, "T", "."), "{line}");
    assert!(rest.starts_with("[anonymous-instance:main:vmm/cli/src/firecracker.rs:"), "{line}");
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
    assert_eq!(lines.len(), 3, "one at the start, one that was asked for, the last one: {lines:?}");
    assert_eq!(lines[0]["put_api_requests"]["drive_count"], 1);
    assert_eq!(lines[1]["put_api_requests"]["actions_count"], 1, "the flush itself");
    for line in &lines[1..] {
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

/// Where the words of `log` come, each after the one before.
#[track_caller]
fn in_order(log: &str, words: &[&str]) {
    let mut rest = log;
    for word in words {
        let at = rest.find(word).unwrap_or_else(|| panic!("'{word}' is not in {rest}; all: {log}"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn it_logs_what_harnesses_wait_for() {
    let (running, client) = waiting(guests::hello, &["--log-path", "log", "--level", "Debug"]);
    client.refuses("PUT", "/boot-source", r#"{"kernel_image_path":"none"}"#, &["none"]);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    client.get("/version");
    client.does("PUT", "/actions", START);
    let outcome = running.wait().exits(0).silently();
    let log = outcome.file("log");
    in_order(
        &log,
        &[
            ":main] Running Firecracker v1.16.1\n",
            ":main] Listening on API socket (\"api.sock\").\n",
            ":api] API server started.\n",
            ":api] The API server received a Put request on \"/boot-source\" with body \"{\\\"kernel_image_path\\\":\\\"none\\\"}\".\n",
            ":api] Received Error. Status code: 400 Bad Request. Message: ",
            ":api] Total previous API call duration: ",
            " us.\n",
            ":api] The request was executed successfully. Status code: 204 No Content.\n",
            ":api] The API server received a Get request on \"/version\".\n",
            ":api] The request was executed successfully. Status code: 200 OK.\n",
            "request on \"/actions\" with body",
            ":main] Vmm is stopping.\n",
            ":main] Firecracker exiting successfully. exit_code=0\n",
        ],
    );
    assert!(!log.contains("single json"), "{log}");
    // Not under its own name.
    let vmm = Vmm::new().guest(guests::hello).args(["--log-level", "debug", "--api-sock", SOCKET]);
    let outcome = vmm.run().exits(0);
    assert!(!outcome.stderr.contains("API server"), "{}", outcome.stderr);
}

#[test]
fn it_logs_how_a_machine_of_a_file_starts_or_does_not() {
    let log = ["--no-api", "--log-path", "log", "--level", "Info"];
    let outcome = from_file(guests::hello).args(log).run().exits(0).silently();
    in_order(
        &outcome.file("log"),
        &[
            "Running Firecracker v",
            "Successfully started microvm that was configured from one single json\n",
            "Firecracker exiting successfully. exit_code=0\n",
        ],
    );
    let vmm = firecracker(guests::hello).file("vm.json", r#"{"boot-source":{}}"#);
    let outcome = vmm.args(["--config-file", "vm.json"]).args(log).run().exits(1);
    in_order(
        &outcome.file("log"),
        &[
            "Failed to build MicroVM from Json: Configuration for VMM from one single json failed: ",
            "missing field `kernel_image_path`",
            "Firecracker exiting with error. exit_code=1\n",
        ],
    );
    let no_kernel = r#"{"boot-source":{"kernel_image_path":"disk"}}"#;
    let vmm = firecracker(guests::hello).file("vm.json", no_kernel);
    let outcome = vmm.args(["--config-file", "vm.json"]).args(log).run().exits(1);
    in_order(
        &outcome.file("log"),
        &[
            "Failed to build MicroVM from Json: Could not Start MicroVM from one single json: ",
            "exit_code=1\n",
        ],
    );
}

#[test]
fn a_socket_in_use_is_refused_in_the_words_that_clients_look_for() {
    let vmm = Vmm::named("firecracker").args(["--api-sock", SOCKET]);
    let _other = std::os::unix::net::UnixListener::bind(vmm.dir().path(SOCKET)).unwrap();
    vmm.run()
        .exits(1)
        .prints("Failed to open the API socket at: api.sock. Check that it is not already used.");
}

#[test]
fn a_body_that_is_too_large_is_answered_byte_for_byte() {
    use std::io::{Read, Write};
    let (_running, client) = waiting(guests::hello, &["--http-api-max-payload-size", "250"]);
    let mut stream = client.connect();
    stream.write_all(b"PUT /mmds/config HTTP/1.1\r\nContent-Length: 260\r\n\r\nsome body").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let expected = "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
        Content-Type: application/json\r\nContent-Length: 145\r\n\r\n\
        { \"error\": \"Request payload with size 260 is larger than the limit of 250 allowed by server.\n\
        All previous unanswered requests will be dropped.\" }";
    assert_eq!(answer, expected);
}

#[test]
fn a_signal_that_ends_firecracker_is_logged_counted_and_ends_it() {
    for (signal, code, name) in [
        (libc::SIGBUS, 149, "sigbus"),
        (libc::SIGSEGV, 150, "sigsegv"),
        (libc::SIGHUP, 156, "sighup"),
    ] {
        let files = ["--log-path", "log", "--metrics-path", "metrics"];
        let (running, client) = waiting(guests::obedient, &files);
        client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
        client.does("PUT", "/actions", START);
        let running = running.prints("ready");
        running.signal(signal);
        let outcome = running.wait().exits(code);
        in_order(
            &outcome.file("log"),
            &[
                &format!("Shutting down VM after intercepting signal {signal}, code 0."),
                &format!("Firecracker exiting with error. exit_code={code}"),
            ],
        );
        let last = outcome.file("metrics");
        let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
        assert_eq!(last["signals"][name], 1);
    }
    // Also before there is a machine.
    let (running, _client) = waiting(guests::hello, &[]);
    running.signal(libc::SIGSEGV);
    running.wait().exits(150).prints("intercepting signal 11");
}

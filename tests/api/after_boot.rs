//! A machine that has started.

use std::fs;

use serde_json::json;

use super::{Client, listening, running, vmm, waiting};
use crate::fixture::Running;
use crate::guests;

const PAUSE: &str = r#"{"state":"Paused"}"#;
const RESUME: &str = r#"{"state":"Resumed"}"#;

#[test]
fn what_is_wrong_once_it_runs_is_refused() {
    let vmm = vmm().sparse_file("disk", 1 << 20).args(["--disk", "disk,id=data"]);
    let (_running, client) = listening(vmm.guest(guests::idle).start().prints("idle"));
    let start = r#"{"action_type":"InstanceStart"}"#;
    client.refuses("PUT", "/actions", start, &["after starting"]);
    for (path, body) in [
        ("/boot-source", r#"{"kernel_image_path":"kernel"}"#),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#),
        ("/drives/a", r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#),
        ("/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#),
        ("/hotplug/memory", r#"{"total_size_mib":1024}"#),
        ("/entropy", "{}"),
        ("/serial", "{}"),
        ("/cpu-config", "{}"),
        ("/logger", r#"{"level":"Info"}"#),
        ("/metrics", r#"{"metrics_path":"m"}"#),
    ] {
        client.refuses("PUT", path, body, &["after starting"]);
    }
    client.refuses("PATCH", "/machine-config", r#"{"vcpu_count":2}"#, &["after starting"]);
    client.refuses("PATCH", "/drives/x", r#"{"drive_id":"x"}"#, &["no such drive"]);
    let path = r#"{"drive_id":"data","path_on_host":"disk"}"#;
    client.refuses("PATCH", "/drives/data", path, &["path_on_host", "a flag has named"]);
    let limiter =
        |bucket: &str| format!(r#"{{"drive_id":"data","rate_limiter":{{"ops":{bucket}}}}}"#);
    client.refuses("PATCH", "/drives/data", &limiter(r#"{"size":"x"}"#), &["invalid type"]);
    client.does("PATCH", "/drives/data", &limiter(r#"{"size":10,"refill_time":100}"#));
    let drives = client.get("/vm/config")["drives"].clone();
    assert_eq!(drives[0]["rate_limiter"]["ops"]["size"], 10, "{drives}");
    client.refuses("PATCH", "/drives/data", r#"{"drive_id":"data"}"#, &["Name a path_on_host"]);
    client.refuses("PATCH", "/vm", r#"{"state":"Sleeping"}"#, &["unknown variant"]);
    client.refuses("PATCH", "/balloon", r#"{"amount_mib":256}"#, &["amount_mib 256"]);
    client.refuses("PATCH", "/hotplug/memory", r#"{"requested_size_mib":2}"#, &["no room"]);
    client.refuses("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#, &["PUT /metrics"]);
    client.does("PATCH", "/balloon", r#"{"amount_mib":16}"#);
    assert_eq!(client.get("/balloon")["amount_mib"], 16);
    assert_eq!(client.get("/balloon/statistics")["target_pages"], 4096);
    assert_eq!(client.get("/")["state"], "Running");
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    let (running, client) = running(guests::busy, "busy");
    for _ in 0..20 {
        client.does("PATCH", "/vm", PAUSE);
        client.does("PATCH", "/vm", PAUSE);
        assert_eq!(client.get("/")["state"], "Paused");
        let used =
            |client: &Client| client.get("/tinyvmm/stats")["cpu_ms"]["vcpu0"].as_f64().unwrap();
        let before = used(&client);
        let exits = |client: &Client| client.get("/tinyvmm/stats")["exits"].clone();
        assert_eq!(exits(&client), exits(&client));
        assert_eq!(used(&client), before, "its CPU does nothing");
        client.does("PATCH", "/vm", RESUME);
        client.does("PATCH", "/vm", RESUME);
        assert_eq!(client.get("/")["state"], "Running");
        while used(&client) <= before {
            assert!(running.proc("status").exists());
        }
    }
}

#[test]
fn what_happens_while_it_is_paused_reaches_the_guest_later() {
    let (running, client) = running(guests::obedient, "ready");
    client.does("PATCH", "/vm", PAUSE);
    client.does("PUT", "/tinyvmm/power-button", "{}");
    assert_eq!(client.get("/")["state"], "Paused");
    client.does("PATCH", "/vm", RESUME);
    running.wait().exits(0).prints("button").silently().leaves_nothing();
}

#[test]
fn a_paused_machine_can_be_ended() {
    for signal in [None, Some(libc::SIGTERM)] {
        let (running, client) = running(guests::obedient, "ready");
        client.does("PATCH", "/vm", PAUSE);
        match signal {
            None => client.does("PUT", "/tinyvmm/stop", ""),
            Some(signal) => running.signal(signal),
        }
        running.wait().exits(8).leaves_nothing();
    }
}

#[test]
fn a_device_at_work_is_paused_with_its_machine() {
    let (running, client) = running(guests::drives_a_device, "driven");
    // A thread has its name a moment after it has begun, and is listed a moment after it has ended.
    let has = |name: &'static str| move |vm: &Running| vm.threads().contains(&name.into());
    let mut running = running.until(has("rng"));
    for _ in 0..10 {
        client.does("PATCH", "/vm", PAUSE);
        running = running.until(|vm| !has("rng")(vm) && !has("vcpu0")(vm));
        client.does("PATCH", "/vm", RESUME);
        running = running.until(has("rng"));
    }
    assert!(client.get("/tinyvmm/stats")["cpu_ms"]["rng"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_machine_that_resets_keeps_its_clients() {
    let (_running, client) = running(guests::acpi_reset, "boot 1\n");
    for _ in 0..50 {
        let state = client.get("/")["state"].clone();
        assert!(state == "Running", "{state}");
    }
    // The client's requests outlive the reset.
    client.does("PATCH", "/balloon", r#"{"amount_mib":16}"#);
    for _ in 0..20 {
        assert_eq!(client.get("/balloon/statistics")["target_mib"], 16);
    }
}

#[test]
fn stats_report_what_the_machine_uses() {
    let (running, client) = running(guests::idle, "idle");
    let stats = client.get("/tinyvmm/stats");
    assert_eq!(stats["state"], "Running");
    let memory = |name: &str| stats["memory_kib"][name].as_u64().unwrap();
    assert_eq!(memory("configured"), 256 << 10);
    assert!((1..=256 << 10).contains(&memory("guest")), "{stats}");
    assert!(memory("vmm") > 0 && memory("guest") + memory("vmm") <= memory("peak"), "{stats}");
    assert!(stats["cpu_ms"]["vcpu0"].as_f64().unwrap() > 0.0, "{stats}");
    assert!(stats["exits"].is_null() || stats["exits"]["total"].as_u64().unwrap() > 0, "{stats}");
    let report = client.get("/tinyvmm/boot-report");
    let names: Vec<_> =
        report["marks"].as_array().unwrap().iter().map(|mark| &mark["name"]).collect();
    assert!(names.iter().any(|name| **name == "cpu-entered"), "{report}");
    drop(running);
}

#[test]
fn the_thread_of_the_api_is_in_a_jail_before_and_after_the_start() {
    let of_api = |running: &Running| {
        let tasks = fs::read_dir(running.proc("task")).unwrap();
        let texts =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        texts
            .into_iter()
            .find(|text| text.starts_with("Name:\tapi\n"))
            .expect("a thread for the API")
    };
    let (before, client) = super::waiting(guests::idle);
    client.get("/");
    assert!(of_api(&before).contains("Seccomp:\t2\n"));
    let (after, client) = running(guests::idle, "idle");
    client.get("/");
    assert!(of_api(&after).contains("Seccomp:\t2\n"));
}

#[cfg(debug_assertions)]
#[test]
fn a_thread_of_the_api_that_opens_something_ends_the_process() {
    let vmm = vmm().guest(guests::idle).env("TINYVMM_BREAK_OUT", "Api");
    vmm.run().exits(10).says(&["the jail", "thread api", "openat"]);
}

#[test]
fn hints_are_asked_for_where_they_are_on_and_a_driver_gives_them() {
    let hinting = ["start", "stop"];
    let (_running, client) = running(guests::idle, "idle");
    for what in hinting {
        client.refuses("PATCH", &format!("/balloon/hinting/{what}"), "", &["hinting is off"]);
    }
    client.refuses("GET", "/balloon/hinting/status", "", &["free_page_hinting of PUT /balloon"]);

    let (running, client) = waiting(guests::idle);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    let balloon = r#"{"amount_mib":1,"deflate_on_oom":true,"free_page_hinting":true}"#;
    client.does("PUT", "/balloon", balloon);
    assert_eq!(client.get("/balloon")["free_page_hinting"], true);
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    let _running = running.prints("idle");
    for what in hinting {
        client.refuses("PATCH", &format!("/balloon/hinting/{what}"), "{}", &["no driver"]);
    }
    let none = json!({"host_cmd": 0, "guest_cmd": null});
    assert_eq!(client.get("/balloon/hinting/status"), none);
}

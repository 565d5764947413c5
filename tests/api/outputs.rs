//! Where console, messages and metrics go.

use std::fs;

use super::waiting;
use crate::fixture::Running;
use crate::guests;

const KERNEL: &str = r#"{"kernel_image_path":"vmlinux"}"#;
const START: &str = r#"{"action_type":"InstanceStart"}"#;

#[test]
fn console_log_and_metrics_go_to_files() {
    let (running, client) = waiting(guests::obedient);
    client.does("PUT", "/boot-source", KERNEL);
    client.does("PUT", "/serial", r#"{"serial_out_path":"serial.txt"}"#);
    let logger =
        r#"{"log_path":"log.txt","level":"debug","show_level":true,"show_log_origin":true}"#;
    client.does("PUT", "/logger", logger);
    client.does("PUT", "/metrics", r#"{"metrics_path":"metrics.txt"}"#);
    client.refuses(
        "PUT",
        "/metrics",
        r#"{"metrics_path":"metrics.txt"}"#,
        &["Reinitialization of metrics not allowed."],
    );
    let data = r#"{"drive_id":"data","is_root_device":false,"path_on_host":"disk"}"#;
    client.does("PUT", "/drives/data", data);
    client.does("PUT", "/actions", START);
    let ready = |vm: &Running| {
        fs::read(vm.dir().path("serial.txt")).is_ok_and(|text| text.starts_with(b"ready"))
    };
    let running = running.until(ready);
    client.does("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
    client.does("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
    let outcome = running.wait().exits(0);
    assert!(outcome.file("serial.txt").contains("button"));
    let log = outcome.file("log.txt");
    assert!(
        log.contains("[anonymous-instance:") && log.contains(":INFO:vmm/cli/src/main.rs:"),
        "{log}"
    );
    let metrics = outcome.file("metrics.txt");
    assert_eq!(metrics.lines().count(), 3, "at the start, asked for, and the last one: {metrics}");
    let metrics: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(metrics["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000, "{metrics}");
    assert_eq!(metrics["block_data"]["read_count"], 0);
}

#[test]
fn what_the_guest_prints_beyond_a_limit_is_dropped_and_counted() {
    let (running, client) = waiting(guests::hello);
    client.does("PUT", "/boot-source", KERNEL);
    let limit = r#"{"rate_limiter":{"size":3,"one_time_burst":4,"refill_time":4294967296}}"#;
    client.does("PUT", "/serial", limit);
    client.does("PUT", "/metrics", r#"{"metrics_path":"metrics.txt"}"#);
    client.does("PUT", "/actions", START);
    let outcome = running.wait().exits(0);
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "hello b");
    let metrics = outcome.file("metrics.txt");
    let dropped = metrics.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["uart"]["rate_limiter_dropped_bytes"].as_u64().unwrap()
    });
    let all = "hello byte by byte\nhello at a time\n".len() as u64;
    assert_eq!(dropped.sum::<u64>(), all - 7);
}

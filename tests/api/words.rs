//! The terms and words of Firecracker that clients depend on.

use std::fs::File;
use std::io::{Read, Write};

use serde_json::{Value, json};

use super::{Client, waiting};
use crate::guests;

const START: &str = r#"{"action_type":"InstanceStart"}"#;

#[test]
fn what_is_null_is_as_if_it_were_left_out() {
    let (running, client) = waiting(guests::hello);
    for (path, required, optional) in [
        (
            "/machine-config",
            r#""vcpu_count":1,"mem_size_mib":32"#,
            "smt track_dirty_pages huge_pages cpu_template",
        ),
        ("/boot-source", r#""kernel_image_path":"vmlinux""#, "initrd_path boot_args"),
        (
            "/drives/a",
            r#""drive_id":"a","is_root_device":false,"path_on_host":"disk""#,
            "partuuid cache_type is_read_only io_engine rate_limiter socket",
        ),
        (
            "/balloon",
            r#""amount_mib":1,"deflate_on_oom":true"#,
            "stats_polling_interval_s free_page_hinting free_page_reporting",
        ),
        ("/hotplug/memory", r#""total_size_mib":128"#, "block_size_mib slot_size_mib"),
        ("/entropy", r#""rate_limiter":{"bandwidth":null,"ops":null}"#, ""),
        ("/serial", r#""serial_out_path":null"#, "rate_limiter"),
        ("/logger", r#""log_path":null"#, "level show_level show_log_origin module"),
        (
            "/cpu-config",
            r#""kvm_capabilities":null"#,
            "cpuid_modifiers msr_modifiers reg_modifiers vcpu_features",
        ),
        ("/vsock", r#""guest_cid":3,"uds_path":"vsock""#, "vsock_id"),
    ] {
        let nulls: String =
            optional.split_whitespace().map(|name| format!(r#","{name}":null"#)).collect();
        client.does("PUT", path, &format!("{{{required}{nulls}}}"));
        client.refuses("PUT", path, &format!(r#"{{{required},"legs":null}}"#), &["unknown field"]);
    }
    client.refuses(
        "PUT",
        "/vsock",
        r#"{"guest_cid":null,"uds_path":"v"}"#,
        &["invalid type: null"],
    );
    let load = r#"{"snapshot_path":"no","mem_file_path":"no","mem_backend":null,"resume_vm":null,
        "clock_realtime":null,"network_overrides":null,"huge_pages":null,"track_dirty_pages":null,
        "enable_diff_snapshots":null,"vsock_override":null}"#;
    client.refuses("PUT", "/snapshot/load", load, &["described already"]);
    client.does("PUT", "/actions", START);
    running.wait().exits(0).prints("hello");
}

/// What Firecracker 1.16.1 answers to the same requests (its src/vmm/src/resources.rs, and test_get_full_config of
/// its tests).
#[test]
fn the_description_is_shown_as_firecracker_shows_it() {
    let (running, client) = waiting(guests::idle);
    File::create(running.dir().path("scratch")).unwrap().set_len(1 << 20).unwrap();
    let nothing = json!({
        "balloon": null,
        "boot-source": {"kernel_image_path": "", "initrd_path": null, "boot_args": null},
        "cpu-config": null,
        "drives": [],
        "entropy": null,
        "logger": null,
        "machine-config": client.get("/machine-config"),
        "memory-hotplug": null,
        "metrics": null,
        "mmds-config": null,
        "network-interfaces": [],
        "pmem": [],
        "vsock": null,
    });
    assert_eq!(client.get("/vm/config"), nothing);
    let put = |path: &str, body: &Value| client.does("PUT", path, &body.to_string());
    put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256, "cpu_template": "None"}));
    put("/boot-source", &json!({"kernel_image_path": "vmlinux", "boot_args": ""}));
    let limit = json!({"bandwidth": {"size": 1000, "refill_time": 100}, "ops": {"size": 0, "refill_time": 1}});
    put(
        "/drives/scratch",
        &json!({"drive_id": "scratch", "is_root_device": false,
        "path_on_host": "scratch", "rate_limiter": limit}),
    );
    put(
        "/drives/rootfs",
        &json!({"drive_id": "rootfs", "is_root_device": true, "is_read_only": true,
        "path_on_host": "disk", "io_engine": "Sync", "rate_limiter": {}}),
    );
    put("/balloon", &json!({"amount_mib": 1, "deflate_on_oom": true}));
    put("/vsock", &json!({"guest_cid": 15, "uds_path": "vsock.sock"}));
    put("/hotplug/memory", &json!({"total_size_mib": 1024}));
    put("/entropy", &json!({}));
    put("/logger", &json!({"level": "Info"}));
    put("/metrics", &json!({"metrics_path": "metrics"}));
    let drive = |id: &str, root: bool, path: &str, limit: Value| {
        json!({"drive_id": id, "partuuid": null, "is_root_device": root, "cache_type": "Unsafe",
            "is_read_only": root, "path_on_host": path, "rate_limiter": limit, "io_engine": "Sync", "socket": null})
    };
    let bandwidth = json!({"size": 1000, "one_time_burst": null, "refill_time": 100});
    let expected = json!({
        "balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 0,
            "free_page_hinting": false, "free_page_reporting": false},
        "boot-source": {"kernel_image_path": "vmlinux", "initrd_path": null, "boot_args": ""},
        "cpu-config": null,
        "drives": [
            drive("rootfs", true, "disk", Value::Null),
            drive("scratch", false, "scratch", json!({"bandwidth": bandwidth, "ops": null})),
        ],
        "entropy": {"rate_limiter": null},
        "logger": null,
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": false,
            "track_dirty_pages": false, "huge_pages": "None"},
        "memory-hotplug": {"total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 128},
        "metrics": null,
        "mmds-config": null,
        "network-interfaces": [],
        "pmem": [],
        "vsock": {"guest_cid": 15, "uds_path": "vsock.sock"},
    });
    assert_eq!(client.get("/vm/config"), expected);
    client.does("PUT", "/actions", START);
    assert_eq!(client.get("/vm/config"), expected);
}

#[test]
fn refusals_have_the_words_that_clients_compare() {
    let (running, client) = waiting(guests::idle);
    let of_json = "An error occurred when deserializing the json body of a request: ";
    for (method, path, body, words) in [
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"no"}"#,
            "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)",
        ),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"vmlinux","initrd_path":"no"}"#,
            "The initrd file cannot be opened due to invalid path or invalid permissions. No such file",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"mem_size_mib": 128}"#,
            "missing field `vcpu_count` at line 1 column 21.",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 18446744073709551616}"#,
            of_json,
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib": 0}"#,
            "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
        ),
        ("PATCH", "/boot-source", "{}", "Invalid request method and/or path: PATCH boot-source."),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path":"x"}"#,
            "missing field: either `mem_backend` or",
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path":"x","mem_file_path":"y","mem_backend":{"backend_type":"File","backend_path":"y"}}"#,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
        ),
    ] {
        client.refuses(method, path, body, &[words]);
    }
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    let disk = r#"{"drive_id":"d","is_root_device":false,"path_on_host":"disk"}"#;
    client.does("PUT", "/drives/d", disk);
    client.does("PUT", "/actions", START);
    client.refuses(
        "PATCH",
        "/drives/d",
        r#"{"drive_id":"d","path_on_host":"foo.bar"}"#,
        &["Error manipulating the backing file: No such file or directory (os error 2) foo.bar"],
    );
    drop(running);
}

/// The answer to the last of the requests in `text`, and what comes before it.
fn exchange(client: &Client, text: &str) -> String {
    let mut stream = client.connect();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn what_clients_should_stop_to_use_has_a_field_of_its_own() {
    let (_running, client) = waiting(guests::idle);
    let answer = |method: &str, path: &str, body: &str| {
        let len = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len}");
        exchange(&client, &format!("{head}\r\n\r\n{body}"))
    };
    for (method, path, body, is_deprecated) in [
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#, false),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"None"}"#,
            true,
        ),
        ("PATCH", "/machine-config", r#"{"cpu_template":"None"}"#, true),
        ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#, false),
        ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"v","vsock_id":"v"}"#, true),
        ("PUT", "/snapshot/load", r#"{"snapshot_path":"no","mem_file_path":"no"}"#, true),
    ] {
        let answer = answer(method, path, body);
        assert_eq!(answer.contains("\r\nDeprecation: true\r\n"), is_deprecated, "{body}: {answer}");
    }
}

#[test]
fn a_connection_of_http_1_0_stays_open() {
    let (_running, client) = waiting(guests::idle);
    let text = "GET /version HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\nConnection: close\r\n\r\n";
    let answer = exchange(&client, text);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

//! A machine that is described over the API.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::{Client, SOCKET, listening, vmm, waiting};
use crate::fixture::Running;
use crate::guests;

const KERNEL: &str = r#"{"kernel_image_path":"vmlinux"}"#;
const START: &str = r#"{"action_type":"InstanceStart"}"#;

#[test]
fn a_machine_is_described_and_started_and_its_socket_goes_with_it() {
    let (running, client) = waiting(guests::hello);
    let mode = fs::metadata(&client.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(client.get("/")["state"], "Not started");
    assert_eq!(client.get("/")["id"], "anonymous-instance");
    assert!(client.get("/version")["firecracker_version"].is_string());
    client.does(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count":2,"mem_size_mib":64,"smt":true,"track_dirty_pages":true}"#,
    );
    client.does("PATCH", "/machine-config", r#"{"mem_size_mib":32}"#);
    let machine = client.get("/machine-config");
    let expected = json!({"vcpu_count": 2, "mem_size_mib": 32, "smt": true,
        "track_dirty_pages": true, "huge_pages": "None"});
    assert_eq!(machine, expected);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux","boot_args":"a=b"}"#);
    let root =
        r#"{"drive_id":"root","is_root_device":true,"is_read_only":true,"path_on_host":"disk"}"#;
    client.does("PUT", "/drives/root", root);
    client.does("PUT", "/balloon", r#"{"amount_mib":8,"deflate_on_oom":false}"#);
    client.refuses("PATCH", "/balloon", r#"{"amount_mib":4}"#, &["before starting"]);
    assert_eq!(client.get("/balloon")["amount_mib"], 8);
    client.does("PUT", "/entropy", "{}");
    client.does("PUT", "/cpu-config", "{}");
    let all = client.get("/vm/config");
    assert_eq!(all["machine-config"], expected);
    assert_eq!(all["boot-source"]["boot_args"], "a=b");
    assert_eq!(all["drives"][0]["drive_id"], "root");
    assert_eq!(all["balloon"]["deflate_on_oom"], false);
    client.does("PUT", "/actions", START);
    running.wait().exits(0).prints("hello").silently().leaves_nothing();
}

/// Starts the machine and returns the guest's command line.
fn command_line(running: Running, client: &Client) -> String {
    client.does("PUT", "/actions", START);
    let outcome = running.wait().exits(0);
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

#[test]
fn boot_args_are_the_whole_command_line_but_for_the_root() {
    let (running, client) = waiting(guests::zero_page);
    let source = r#"{"kernel_image_path":"vmlinux","boot_args":"console=ttyS0 -- x=y"}"#;
    client.does("PUT", "/boot-source", source);
    let data = r#"{"drive_id":"data","is_root_device":false,"path_on_host":"initrd2"}"#;
    client.refuses("PUT", "/drives/data", data, &["initrd2"]);
    let root =
        r#"{"drive_id":"root","is_root_device":true,"partuuid":"1-2","path_on_host":"disk"}"#;
    client.does("PUT", "/drives/root", root);
    let line = command_line(running, &client);
    // This kernel has no ACPI, in which it would find its three devices.
    let devices = (0..3).map(|n| format!(" virtio_mmio.device=4096@0xd000{n}000:1{n}"));
    let devices = devices.collect::<String>();
    let expected = format!("console=ttyS0 root=PARTUUID=1-2 rw{devices} -- x=y\0");
    assert!(line.contains(&expected), "{expected} is not in its memory");
}

#[test]
fn a_machine_that_cannot_be_is_refused_and_changes_nothing() {
    let (_running, client) = waiting(guests::idle);
    let before = client.get("/vm/config");
    for (path, body, words) in [
        ("/machine-config", r#"{"vcpu_count":0,"mem_size_mib":64}"#, "vcpu_count 0"),
        ("/machine-config", r#"{"vcpu_count":33,"mem_size_mib":64}"#, "vcpu_count 33"),
        ("/machine-config", r#"{"vcpu_count":-1,"mem_size_mib":64}"#, "invalid value"),
        ("/machine-config", r#"{"vcpu_count":3,"mem_size_mib":64,"smt":true}"#, "even"),
        ("/machine-config", r#"{"vcpu_count":"1","mem_size_mib":64}"#, "invalid type"),
        ("/machine-config", r#"{"vcpu_count":1}"#, "missing field `mem_size_mib`"),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1}"#, "the least is 16M"),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":99999999999999999}"#, "mem_size_mib"),
        (
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"legs":2}"#,
            "unknown field `legs`",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"T2"}"#,
            "cpu_template T2: it is for some processors",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":33,"huge_pages":"2M"}"#,
            "not a multiple",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"1G"}"#,
            "unknown variant",
        ),
    ] {
        client.refuses("PUT", path, body, &[words]);
    }
    assert_eq!(client.get("/vm/config"), before);
}

#[test]
fn files_and_devices_that_are_wrong_are_refused_and_change_nothing() {
    let (_running, client) = waiting(guests::idle);
    let before = client.get("/vm/config");
    let drive = |rest: &str| format!(r#"{{"drive_id":"a","is_root_device":false{rest}}}"#);
    let disk = r#","path_on_host":"disk""#;
    for (path, body, words) in [
        ("/boot-source", r#"{"kernel_image_path":"none"}"#, "none"),
        ("/boot-source", r#"{"kernel_image_path":"vmlinux","initrd_path":"none"}"#, "initrd none"),
        ("/boot-source", r#"{"boot_args":"x"}"#, "missing field `kernel_image_path`"),
        ("/boot-source", r#"{"kernel_image_path":"vmlinux","boot_args":"a\u0000b"}"#, "zero byte"),
        ("/drives/a", &drive(""), "path_on_host"),
        ("/drives/b", &drive(disk), "Say the same"),
        ("/drives/a", &drive(r#","path_on_host":"none""#), "none"),
        ("/drives/a", &drive(&format!(r#"{disk},"io_engine":"aio""#)), "`Sync` or `Async`"),
        (
            "/drives/a",
            &drive(&format!(r#"{disk},"rate_limiter":{{"ops":{{"size":1}}}}"#)),
            "refill",
        ),
        (
            "/drives/a",
            &drive(&format!(r#"{disk},"rate_limiter":{{"bytes":null}}"#)),
            "unknown field",
        ),
        ("/drives/a", &drive(&format!(r#"{disk},"socket":"s""#)), "socket"),
        ("/drives/a", &drive(&format!(r#"{disk},"cache_type":"Maybe""#)), "unknown variant"),
        ("/balloon", r#"{"amount_mib":256,"deflate_on_oom":true}"#, "amount_mib 256"),
        ("/balloon", r#"{"amount_mib":1}"#, "deflate_on_oom"),
        (
            "/balloon",
            r#"{"amount_mib":1,"deflate_on_oom":true,"free_page_hinting":1}"#,
            "expected a boolean",
        ),
        ("/entropy", r#"{"rate_limiter":{"ops":{"size":-1,"refill_time":1}}}"#, "invalid value"),
        ("/serial", r#"{"rate_limiter":{"size":1}}"#, "refill_time"),
        ("/hotplug/memory", "{}", "missing field `total_size_mib`"),
        ("/hotplug/memory", r#"{"total_size_mib":0}"#, "total_size_mib 0"),
        ("/hotplug/memory", r#"{"total_size_mib":17592186044416}"#, "total_size_mib 1759"),
        ("/hotplug/memory", r#"{"total_size_mib":1023}"#, "whole blocks"),
        ("/hotplug/memory", r#"{"total_size_mib":1024,"block_size_mib":3}"#, "power of two"),
        ("/hotplug/memory", r#"{"total_size_mib":1048576,"block_size_mib":2}"#, "larger ones"),
        ("/hotplug/memory", r#"{"total_size_mib":1024,"slot_size_mib":64}"#, "slot_size_mib 64"),
        ("/logger", r#"{"level":"Loud"}"#, "level Loud"),
        ("/logger", r#"{"module":"api"}"#, "module"),
        ("/logger", r#"{"log_path":"no/such/folder"}"#, "no/such/folder"),
        ("/metrics", "{}", "metrics_path"),
    ] {
        client.refuses("PUT", path, body, &[words]);
    }
    assert_eq!(client.get("/vm/config"), before);
}

#[test]
fn what_is_not_there_or_not_yet_is_refused() {
    let (_running, client) = waiting(guests::idle);
    let before = client.get("/vm/config");
    for (path, body, words) in [
        ("/actions", r#"{"action_type":"Dance"}"#, "unknown variant `Dance`"),
        ("/actions", START, "no kernel"),
        ("/actions", r#"{"action_type":"SendCtrlAltDel"}"#, "before starting"),
        ("/actions", r#"{"action_type":"FlushMetrics"}"#, "before starting"),
        ("/actions", "", "Empty PUT request."),
        ("/actions", "[", "EOF"),
        ("/tinyvmm/power-button", "", "before starting"),
        ("/network-interfaces/eth0", "{}", "missing field `iface_id`"),
        ("/vsock", "{}", "missing field `guest_cid`"),
        ("/snapshot/load", "{}", "missing field `snapshot_path`"),
        ("/snapshot/load", r#"{"snapshot_path":"no","mem_file_path":"no"}"#, "no: No such file"),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"disk","mem_file_path":"disk"}"#,
            "it is no snapshot",
        ),
        ("/snapshot/create", r#"{"snapshot_path":"a","mem_file_path":"b"}"#, "before starting"),
        ("/tinyvmm/snapshot", "", "before starting"),
        ("/mmds", "{}", "not supported yet"),
        ("/mmds/config", "{}", "not supported yet"),
        ("/pmem/a", "{}", "not supported yet"),
        ("/nowhere", "{}", "path: PUT nowhere."),
    ] {
        client.refuses("PUT", path, body, &[words]);
    }
    client.refuses("PATCH", "/vm", r#"{"state":"Paused"}"#, &["before starting"]);
    client.refuses("PATCH", "/drives/a", r#"{"drive_id":"a"}"#, &["before starting"]);
    client.refuses("PATCH", "/hotplug/memory", r#"{"requested_size_mib":2}"#, &["before starting"]);
    client.refuses("GET", "/hotplug/memory", "", &["before starting"]);
    client.refuses("PATCH", "/balloon/hinting/start", "", &["before starting"]);
    client.refuses("PATCH", "/balloon/hinting/stop", "{}", &["before starting"]);
    client.refuses("PATCH", "/balloon/hinting/dance", "", &["path: PATCH balloon/hinting/dance"]);
    client.refuses("GET", "/balloon/hinting/status", "", &["before starting"]);
    let start = r#"{"acknowledge_on_stop":1}"#;
    client.refuses("PATCH", "/balloon/hinting/start", start, &["expected a boolean"]);
    client.refuses("GET", "/balloon/statistics", "", &["before starting"]);
    client.refuses("GET", "/tinyvmm/stats", "", &["before starting"]);
    client.refuses("GET", "/", "{}", &["cannot have a body"]);
    client.refuses(
        "PATCH",
        "/balloon/statistics",
        r#"{"stats_polling_interval_s":0}"#,
        &["before starting"],
    );
    client.refuses("PATCH", "/machine-config", "{}", &["Empty PATCH request."]);
    client.refuses("PATCH", "/machine-config", r#"{"smt":null}"#, &["Empty PATCH request."]);
    client.refuses("PATCH", "/vm", "", &["Empty PATCH request."]);
    assert_eq!(client.get("/vm/config"), before);
}

#[test]
fn only_one_drive_has_the_root_and_a_drive_can_be_put_again() {
    let (_running, client) = waiting(guests::idle);
    let drive = |id: &str, root: bool| {
        format!(r#"{{"drive_id":"{id}","is_root_device":{root},"path_on_host":"disk"}}"#)
    };
    client.does("PUT", "/drives/a", &drive("a", true));
    client.refuses("PUT", "/drives/b", &drive("b", true), &["A root block device already exists"]);
    client.does("PUT", "/drives/a", &drive("a", false));
    client.does("PUT", "/drives/b", &drive("b", true));
    assert_eq!(client.get("/vm/config")["drives"].as_array().unwrap().len(), 2);
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let (running, client) = waiting(guests::hello);
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"disk"}"#);
    client.refuses("PUT", "/actions", START, &["kernel disk"]);
    assert_eq!(client.get("/")["state"], "Not started");
    client.does("PUT", "/boot-source", KERNEL);
    client.does("PUT", "/actions", START);
    running.wait().exits(0).prints("hello").silently().leaves_nothing();
}

#[test]
fn starts_that_fail_leave_nothing_behind() {
    let (running, client) = waiting(guests::hello);
    client.does("PUT", "/boot-source", KERNEL);
    client.does("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":512}"#);
    client.does("PUT", "/serial", r#"{"serial_out_path":"nowhere/serial"}"#);
    let holds = || {
        let files = fs::read_dir(running.proc("fd")).unwrap().count();
        let status = fs::read_to_string(running.proc("status")).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
        (files, kib >> 10)
    };
    let fail = || client.refuses("PUT", "/actions", START, &["nowhere/serial"]);
    fail();
    let (files, mib) = holds();
    (0..5).for_each(|_| fail());
    let (files_after, mib_after) = holds();
    // A connection that is about to be closed counts.
    assert!(files_after < files + 3, "{files} files, then {files_after}");
    assert!(mib_after < mib + 64, "{mib} MiB, then {mib_after}");
}

#[test]
fn it_waits_until_a_signal_or_a_client_ends_it() {
    let (running, client) = waiting(guests::idle);
    client.does("PUT", "/tinyvmm/stop", "");
    running.wait().exits(8).says(&["over the API"]).leaves_nothing();
    let (running, _) = waiting(guests::idle);
    running.signal(libc::SIGTERM);
    running.wait().exits(8).says(&["by a signal"]).leaves_nothing();
}

#[test]
fn flags_that_do_not_go_with_it_are_refused() {
    let (_running, client) = waiting(guests::idle);
    let path = client.0.to_str().unwrap();
    let other = crate::fixture::Vmm::new().args(["--api-sock", path]);
    other.run().refuses(3, &["in use by another process"]);
    vmm().file(SOCKET, "mine").run().refuses(3, &[SOCKET, "no socket"]);
    vmm().args(["--jail", "user=5"]).run().refuses(2, &["--jail", "--kernel"]);
    vmm().args(["--id", "a b"]).run().refuses(2, &["--id"]);
    vmm().args(["--http-api-max-payload-size", "0"]).run().refuses(2, &["payload"]);
    let long = format!("{}/api.sock", "x".repeat(108));
    crate::fixture::Vmm::new().args(["--api-sock", &long]).run().refuses(3, &["--api-sock"]);
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let (running, client) = waiting(guests::hello);
    running.signal(libc::SIGKILL);
    let outcome = running.wait();
    assert!(client.0.exists(), "it could not remove it");
    let path = outcome.dir().path(SOCKET);
    let again = crate::fixture::Vmm::new().args(["--api-sock", path.to_str().unwrap()]);
    let again = again.guest(guests::hello).run().exits(0).silently();
    assert!(!path.exists());
    drop(again);
}

#[test]
fn a_file_describes_a_machine_in_the_same_terms() {
    let file = json!({
        "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "a=b"},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 32},
        "drives": [{"drive_id": "root", "is_root_device": true, "path_on_host": "disk"}],
        "memory-hotplug": {"total_size_mib": 64, "block_size_mib": 4, "slot_size_mib": 128},
        "network-interfaces": null,
        "pmem": null,
        "vsock": {"guest_cid": 7, "uds_path": "vsock"},
        "mmds-config": null,
        "what_nobody_knows": null,
    });
    let with = |file: &serde_json::Value, code: fn() -> Vec<u8>| {
        let vmm = crate::fixture::Vmm::new().file("vmlinux", guests::elf(&code()));
        let vmm = vmm.sparse_file("disk", 1 << 20).file("vm.json", file.to_string());
        vmm.args(["--config-file", "vm.json"])
    };
    let outcome = with(&file, guests::hello).run().exits(0).prints("hello").leaves_nothing();
    outcome.says(&["nobody can ask for more without --api-sock"]);
    let (_running, client) =
        listening(with(&file, guests::idle).args(["--api-sock", SOCKET]).start().prints("idle"));
    assert_eq!(client.get("/")["state"], "Running");
    assert_eq!(client.get("/machine-config")["mem_size_mib"], 32);
    let room = json!({"total_size_mib": 64, "block_size_mib": 4, "slot_size_mib": 128});
    assert_eq!(client.get("/vm/config")["memory-hotplug"], room);
    assert_eq!(client.get("/vm/config")["vsock"], file["vsock"]);
    client.does("PATCH", "/hotplug/memory", r#"{"requested_size_mib":8}"#);
    assert_eq!(client.get("/hotplug/memory")["requested_size_mib"], 8);
    // A guest that resets is at its end.
    with(&file, guests::acpi_reset).run().exits(4).prints("boot 1");
    let refused = |name: &str, value: serde_json::Value, words: &[&str]| {
        let mut file = file.clone();
        file[name] = value;
        let words = [words, &["vm.json"]].concat();
        with(&file, guests::hello).run().refuses(3, &words);
    };
    refused("vsock", json!({}), &["missing field `guest_cid`"]);
    refused("network-interfaces", json!([{}]), &["missing field `iface_id`"]);
    refused("mmds-config", json!({}), &["mmds-config: not supported"]);
    refused("balloon", json!({"amount_mib": "1"}), &["line 1 column", "string \"1\""]);
    refused("legs", json!(2), &["unknown field `legs`"]);
    refused("machine-config", json!({"vcpu_count": 99, "mem_size_mib": 32}), &["vcpu_count 99"]);
    let endless = crate::fixture::Vmm::new().args(["--config-file", "/dev/zero"]);
    endless.run().refuses(3, &["/dev/zero", "larger than 1024 KiB"]);
    let both = with(&file, guests::hello).args(["--kernel", "vmlinux"]).run();
    both.refuses(2, &["--config-file", "--kernel"]);
}

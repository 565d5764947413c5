//! The API, with Linux as the guest.

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::disk::{empty, full};
use super::{CLOUD_ELF, Console, then_run};
use crate::api::{Client, listening, vmm};
use crate::fixture::{Dir, Running};

const MIB: usize = 1 << 20;
const PAUSE: &str = r#"{"state":"Paused"}"#;
const RESUME: &str = r#"{"state":"Resumed"}"#;

/// A machine with these disks that was described and started over the API, and runs `script`.
fn started(script: &str, disks: &[(&str, &Path)]) -> (Running, Client) {
    let (running, client) = listening(vmm().stdin(Stdio::piped()).start());
    client.does("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":256}"#);
    let args = format!("console=ttyS0 panic=-1 cryptomgr.notests quiet {}", then_run(script));
    let source = json!({"kernel_image_path": CLOUD_ELF.path(), "initrd_path": CLOUD_ELF.initrd(),
        "boot_args": args});
    client.does("PUT", "/boot-source", &source.to_string());
    for (id, path) in disks {
        let drive = json!({"drive_id": id, "is_root_device": false, "path_on_host": path});
        client.does("PUT", &format!("/drives/{id}"), &drive.to_string());
    }
    let balloon = r#"{"amount_mib":0,"deflate_on_oom":true,"stats_polling_interval_s":1}"#;
    client.does("PUT", "/balloon", balloon);
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    (running, client)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The two numbers of a line `name=1 2`.
fn pair(console: &Console, name: &str) -> (u64, u64) {
    let (first, second) = console.value(name).split_once(' ').unwrap();
    (first.parse().unwrap(), second.parse().unwrap())
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn paused_two_hundred_times_under_load_no_request_is_lost_or_repeated() {
    let dir = Dir::new();
    let (from, to) = (full(&dir, "from", 4 * MIB), empty(&dir, "to", 4 * MIB));
    let direct = "bs=64k iflag=direct";
    let script = format!(
        "touch /go; ( n=0; while [ -e /go ]; do \
         dd if=/dev/zero of=/dev/vdb bs=1M count=4 oflag=direct 2>/dev/null; \
         dd if=/dev/vda of=/dev/vdb {direct} oflag=direct 2>/dev/null; \
         a=$(dd if=/dev/vda {direct} 2>/dev/null | md5sum); b=$(dd if=/dev/vdb {direct} 2>/dev/null | md5sum); \
         [ ${{a%% *}} = ${{b%% *}} ] || echo differ=1; \
         n=$((n + 1)); [ $n != 1 ] || echo up=1; done; sync; echo rounds=$n ) & read x; rm /go; wait; \
         set -- $(cat /sys/block/vda/stat); echo vda=$1 $3; \
         set -- $(cat /sys/block/vdb/stat); echo vdb=$5 $7; echo counted=1; read x"
    );
    let (running, client) = started(&script, &[("from", &from), ("to", &to)]);
    let running = running.prints("up=1");
    for _ in 0..200 {
        client.does("PATCH", "/vm", PAUSE);
        client.does("PATCH", "/vm", RESUME);
    }
    let running = running.types("\n").prints("counted=1");
    let stats = client.get("/tinyvmm/stats");
    let free = client.get("/balloon/statistics");
    let outcome = running.types("\n").wait().exits(0).silently();
    let console = Console::of(&outcome);
    assert_eq!(console.count("differ=1"), 0, "{}", console.0);
    assert!(console.number("rounds") >= 1, "{}", console.0);
    let count = |disk: usize, field: &str| stats["disks"][disk][field].as_u64().unwrap();
    let sectors = |disk, field| count(disk, field) / 512;
    assert_eq!(pair(&console, "vda"), (count(0, "reads"), sectors(0, "read_bytes")), "{stats}");
    assert_eq!(pair(&console, "vdb"), (count(1, "writes"), sectors(1, "write_bytes")), "{stats}");
    assert_eq!(free["target_mib"], 0, "{free}");
    assert_eq!(std::fs::read(from).unwrap(), std::fs::read(to).unwrap());
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_machine_is_described_watched_and_asked_to_power_off() {
    let dir = Dir::new();
    let disk = full(&dir, "data", MIB);
    let script = "echo id=$(cat /sys/block/vda/serial); dd if=/dev/vda of=/dev/null bs=64k \
        iflag=direct 2>/dev/null; echo up=1; read x; echo date=$(date +%s)";
    let (running, client) = started(script, &[("data", &disk)]);
    let running = running.prints("up=1");
    // Clocks run on: one that had stopped would be behind by more than the box ever is.
    client.does("PATCH", "/vm", PAUSE);
    thread::sleep(Duration::from_secs(15));
    client.does("PATCH", "/vm", RESUME);
    let resumed = now();
    let stats = client.get("/tinyvmm/stats");
    assert_eq!(stats["disks"][0]["read_bytes"].as_u64().unwrap() % 512, 0, "{stats}");
    assert!(stats["disks"][0]["read_bytes"].as_u64().unwrap() >= MIB as u64, "{stats}");
    assert!(stats["memory_kib"]["guest"].as_u64().unwrap() > 10 << 10, "{stats}");
    assert!(stats["exits"]["total"].as_u64().unwrap() > 100, "{stats}");
    let cpu = |name: &str| stats["cpu_ms"][name].as_f64().unwrap();
    assert!(cpu("vcpu0") > 0.0 && cpu("disk0") > 0.0, "{stats}");
    client.get("/balloon/statistics");
    let outcome = running.types("\n").wait().exits(0).silently();
    let console = Console::of(&outcome);
    console.has("id", "data");
    let date = console.number("date");
    assert!((resumed - 7..=now() + 1).contains(&date), "{date}, resumed at {resumed}");
}

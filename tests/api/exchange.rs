//! A drive that gets another file while the machine runs.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::{Client, SOCKET, listening};
use crate::dir::Dir;
use crate::disk::LoopDevice;
use crate::fixture::{Running, Vmm};
use crate::guests::{self, guest};

guest!(
    /// Prints "small" while the first disk has 2048 sectors, and "large" once it has others; then powers off.
    watches_its_disk,
    "mov ebx, 0xd0000000",
    "cmp dword ptr [rbx + 0x100], 2048",
    "jne 3f",
    r#"say "small\n""#,
    "2: mov ecx, 1000",
    "4: loop 4b",
    "cmp dword ptr [rbx + 0x100], 2048",
    "je 2b",
    r#"3: say "large\n""#,
    "power_off",
);

const MIB: u64 = 1 << 20;
const PAUSE: &str = r#"{"state":"Paused"}"#;
const RESUME: &str = r#"{"state":"Resumed"}"#;

/// A machine that was described over the API, with a disk of 1 MiB in a folder of its own.
fn machine(vmm: Vmm, drive: &str) -> (Running, Client) {
    let vmm = vmm.args(["--api-sock", SOCKET]).file("vmlinux", guests::elf(&watches_its_disk()));
    fs::create_dir(vmm.dir().path("disks")).unwrap();
    let (running, client) = listening(vmm.sparse_file("disks/first", MIB).start());
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    client.does("PUT", "/drives/d", drive);
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    (running.prints("small"), client)
}

const DRIVE: &str = r#"{"drive_id":"d","is_root_device":false,"path_on_host":"disks/first"}"#;

fn path(path: &str) -> String {
    json!({"drive_id": "d", "path_on_host": path}).to_string()
}

fn sparse(running: &Running, name: &str, len: u64) -> File {
    let file = File::create(running.dir().path(name)).unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn another_file_is_locked_and_the_guest_sees_its_size() {
    let (running, client) = machine(Vmm::new(), DRIVE);
    let second = sparse(&running, "disks/second", 2 * MIB);
    let first = File::open(running.dir().path("disks/first")).unwrap();
    assert!(first.try_lock().is_err(), "the machine has it locked");
    client.does("PATCH", "/vm", PAUSE);
    client.does("PATCH", "/drives/d", &path("disks/second"));
    assert_eq!(client.get("/")["state"], "Paused", "as it was");
    assert!(second.try_lock().is_err(), "now it has this one locked");
    first.try_lock().unwrap();
    assert_eq!(client.get("/vm/config")["drives"][0]["path_on_host"], "disks/second");
    client.does("PATCH", "/vm", RESUME);
    running.wait().exits(0).prints("small\nlarge").silently();
}

#[test]
fn a_file_that_has_grown_is_looked_at_again() {
    let (running, client) = machine(Vmm::new(), DRIVE);
    client.does("PATCH", "/drives/d", &path("disks/first"));
    let file = File::options().write(true).open(running.dir().path("disks/first")).unwrap();
    file.set_len(3 * MIB).unwrap();
    client.does("PATCH", "/vm", PAUSE);
    client.does("PATCH", "/drives/d", &path("disks/first"));
    assert!(file.try_lock().is_err(), "it is locked still");
    client.does("PATCH", "/vm", RESUME);
    running.wait().exits(0).prints("small\nlarge").silently();
}

#[test]
fn a_block_device_in_the_folder_takes_its_place() {
    for sector in [512, 4096] {
        let (running, client) = machine(Vmm::new(), DRIVE);
        drop(sparse(&running, "image", 2 * MIB));
        let Some(device) = LoopDevice::new(&running.dir().path("image"), sector) else { return };
        let node = running.dir().path("disks/node");
        let number = fs::metadata(&device.0).unwrap().rdev();
        let mode = Mode::RUSR | Mode::WUSR;
        if let Err(error) = mknodat(CWD, &node, FileType::BlockDevice, mode, number) {
            return eprintln!("SKIPPED: no block device can be made here: {error}");
        }
        if let Err(error) = File::open(&node) {
            return eprintln!("SKIPPED: no block device can be opened here: {error}");
        }
        client.does("PATCH", "/vm", PAUSE);
        client.does("PATCH", "/drives/d", &path("disks/node"));
        // Again: it may have another size by now.
        client.does("PATCH", "/drives/d", &path("disks/node"));
        client.does("PATCH", "/vm", RESUME);
        running.wait().exits(0).prints("small\nlarge").silently();
    }
}

#[test]
fn what_cannot_take_its_place_is_refused_and_the_machine_goes_on_with_what_it_has() {
    let (running, client) = machine(Vmm::new(), DRIVE);
    let elsewhere = Dir::new();
    fs::write(elsewhere.path("disk"), [0; 512]).unwrap();
    symlink(elsewhere.path("disk"), running.dir().path("disks/link")).unwrap();
    sparse(&running, "disks/odd", 1000);
    let busy = sparse(&running, "disks/busy", 2 * MIB);
    busy.try_lock().unwrap();
    sparse(&running, "outside", 2 * MIB);
    let outside = elsewhere.path("disk").display().to_string();
    for (file, words) in [
        ("disks/none", "No such file"),
        ("disks/odd", "not a multiple of 512"),
        ("disks/busy", "in use by another machine"),
        ("disks", ""),
        ("outside", "folder"),
        ("disks/../outside", "folder"),
        ("disks/link", "folder"),
        (outside.as_str(), "folder"),
        ("/etc/passwd", "folder"),
    ] {
        client.refuses("PATCH", "/drives/d", &path(file), &[file, words]);
    }
    let state = client.get("/vm/config")["drives"][0].clone();
    assert_eq!(state["path_on_host"], "disks/first", "{state}");
    client.does("PUT", "/tinyvmm/stop", "");
    running.wait().exits(8).prints("small");
}

#[test]
fn a_drive_that_is_only_read_stays_so() {
    let drive: Value = serde_json::from_str(DRIVE).unwrap();
    let mut drive = drive;
    drive["is_read_only"] = true.into();
    let (running, client) = machine(Vmm::new(), &drive.to_string());
    let second = sparse(&running, "disks/second", 2 * MIB);
    client.does("PATCH", "/vm", PAUSE);
    client.does("PATCH", "/drives/d", &path("disks/second"));
    assert!(second.try_lock().is_err(), "others may read it, none write");
    second.try_lock_shared().unwrap();
    assert_eq!(client.get("/vm/config")["drives"][0]["is_read_only"], true);
    // The guest ends when it sees the other size.
    client.does("PATCH", "/vm", RESUME);
    running.wait().exits(0).prints("large").silently();
}

#[cfg(debug_assertions)]
#[test]
fn the_thread_that_may_open_drives_opens_nothing_else_and_the_others_nothing() {
    let (running, client) = machine(Vmm::new().env("TINYVMM_BREAK_OUT", "Main"), DRIVE);
    client.does("PUT", "/tinyvmm/stop", "");
    let outcome = running.wait().exits(8);
    assert!(outcome.stderr.contains("/etc/passwd: Err("), "{}", outcome.stderr);
    for kind in ["Vcpu", "Starter"] {
        let vmm = Vmm::new().env("TINYVMM_BREAK_OUT", kind);
        let vmm = vmm.args(["--config-file", "vm.json", "--api-sock", SOCKET]);
        let file = json!({"boot-source": {"kernel_image_path": "vmlinux"},
            "drives": [serde_json::from_str::<Value>(DRIVE).unwrap()]});
        let vmm = vmm.file("vm.json", file.to_string());
        fs::create_dir(vmm.dir().path("disks")).unwrap();
        let vmm = vmm.file("vmlinux", guests::elf(&watches_its_disk()));
        vmm.sparse_file("disks/first", MIB).run().exits(10).says(&["the jail", "openat"]);
    }
}

#[test]
fn a_drive_is_found_by_its_whole_name() {
    let vmm = Vmm::new()
        .args(["--api-sock", SOCKET])
        .file("vmlinux", guests::elf(&guests::idle()))
        .sparse_file("flag", 1 << 20);
    let vmm = vmm.sparse_file("disk", 1 << 20).args(["--disk", "flag,readonly"]);
    let (running, client) = listening(vmm.start());
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#);
    let drive = |id: &str, root: bool| {
        json!({"drive_id": id, "is_root_device": root, "is_read_only": true, "path_on_host": "disk"}).to_string()
    };
    client.refuses("PUT", "/drives/disk0", &drive("disk0", false), &["a disk of flags has it"]);
    // As the guest sees them, they are the same.
    let (data, root) = ("x".repeat(20), "x".repeat(30));
    for (id, is_root) in [(&data, false), (&root, true)] {
        client.does("PUT", &format!("/drives/{id}"), &drive(id, is_root));
    }
    client.does("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    let _running = running.prints("idle");
    for id in ["disk0", &data, &root] {
        let limit = json!({"drive_id": id, "rate_limiter": {"ops": {"size": 5, "refill_time": 9}}});
        client.does("PATCH", &format!("/drives/{id}"), &limit.to_string());
    }
    let disks = client.get("/tinyvmm/stats")["disks"].clone();
    let names: Vec<_> = disks.as_array().unwrap().iter().map(|disk| disk["id"].clone()).collect();
    assert_eq!(names, [json!(root), json!("disk0"), json!(data)]);
}

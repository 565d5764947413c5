//! A process under the name `firecracker` in what Firecracker's jailer makes for it: a chroot without /proc and
//! /dev/null, another user, and the flags that it adds.

use std::fs;
use std::os::unix::fs::chown;

use super::{Client, SOCKET, listening};
use crate::fixture::{Running, Vmm};
use crate::guests;
use crate::jail::is_root;

const START: &str = r#"{"action_type":"InstanceStart"}"#;
/// Makes the working directory what the jailer makes of a folder, and executes the program there.
const JAILER: &str = "mkdir -p dev run && mknod dev/kvm c 10 232 && cp \"$0\" firecracker \
    && chown -R 1234:1234 . && exec env -i \"$(command -v chroot)\" --userspec=1234:1234 --groups= . /firecracker \
    --id vm-1 --start-time-us 1 --start-time-cpu-us 1 --parent-cpu-time-us 1 \"$@\"";

/// A Firecracker in such a chroot, with a kernel and a disk.
fn jailed(args: &[&str]) -> Vmm {
    let vmm = Vmm::started_by(&["sh", "-c", JAILER]).args(["--api-sock", SOCKET]).args(args);
    vmm.file("vmlinux", guests::elf(&guests::obedient())).sparse_file("disk", 1 << 20)
}

/// The same, which waits for requests; `None` without the right to make a chroot.
fn waiting() -> Option<(Running, Client)> {
    if !is_root() {
        eprintln!("SKIPPED: only root can make a chroot");
        return None;
    }
    let (running, client) = listening(jailed(&[]).start());
    client.does("PUT", "/boot-source", r#"{"kernel_image_path":"/vmlinux"}"#);
    Some((running, client))
}

#[test]
fn it_starts_in_a_chroot_that_has_nothing_but_its_files() {
    let Some((running, client)) = waiting() else { return };
    let disk = r#"{"drive_id":"d","is_root_device":true,"path_on_host":"/disk"}"#;
    client.does("PUT", "/drives/d", disk);
    // Its other process starts there, too.
    client.does("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"/v.sock"}"#);
    client.does("PUT", "/actions", START);
    let running = running.prints("ready");
    assert!(running.dir().path("v.sock").exists());
    // What takes /proc is not known.
    assert_eq!(client.get("/tinyvmm/stats")["memory_kib"]["vmm"], 0);
    client.does("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
    let outcome = running.wait().exits(0).prints("[vm-1:main");
    assert!(!outcome.dir().path("v.sock").exists() && !outcome.dir().path(SOCKET).exists());
}

#[test]
fn a_drive_in_the_root_of_a_chroot_can_be_exchanged() {
    let Some((running, client)) = waiting() else { return };
    let disk = r#"{"drive_id":"d","is_root_device":false,"path_on_host":"/disk"}"#;
    client.does("PUT", "/drives/d", disk);
    client.does("PUT", "/actions", START);
    let running = running.prints("ready");
    let path = |path: &str| format!(r#"{{"drive_id":"d","path_on_host":"{path}"}}"#);
    // One that has grown, and one that is made while it runs.
    let grown = fs::File::options().write(true).open(running.dir().path("disk")).unwrap();
    grown.set_len(2 << 20).unwrap();
    client.does("PATCH", "/drives/d", &path("/disk"));
    let second = running.dir().path("second");
    fs::write(&second, [0; 4096]).unwrap();
    chown(&second, Some(1234), Some(1234)).unwrap();
    client.does("PATCH", "/drives/d", &path("/second"));
    assert_eq!(client.get("/vm/config")["drives"][0]["path_on_host"], "/second");
    client.refuses("PATCH", "/drives/d", &path("/third"), &["No such file or directory", "/third"]);
    client.does("PUT", "/tinyvmm/stop", "");
    running.wait().exits(0);
}

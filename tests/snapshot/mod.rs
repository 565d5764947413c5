//! Snapshots, and the machines that are made of them, with hand-made guests. `linux::snapshot` has stock kernels.

mod damage;
pub mod diff;
mod disks;
mod firecracker;
mod identity;
mod page_server;
mod seam;
mod versions;

use std::process::Stdio;

use crate::api::{Client, listening, vmm};
use crate::fixture::{Dir, Running, Vmm};
use crate::guests::guest;

guest!(
    /// For each byte that is typed prints a letter and a small one, the next ones of the alphabet: a register counts the
    /// first, and memory the second. Powers off on 'q', and resets on 'r'.
    counts,
    r#"say "ready\n""#,
    "xor r12d, r12d",
    "2: mov edx, {com1} + 5",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, {com1}",
    "in al, dx",
    "cmp al, 'q'",
    "je 4f",
    "cmp al, 'r'",
    "je 5f",
    "lea eax, [r12 + 'A']",
    "out dx, al",
    "inc r12d",
    "mov al, [rip + 3f]",
    "out dx, al",
    "inc byte ptr [rip + 3f]",
    "mov al, 10",
    "out dx, al",
    "jmp 2b",
    "4: power_off",
    "5: out8 {reset}, 1",
    "sleep",
    "3: .ascii \"a\"",
);

/// A machine that counts, and has an API.
fn counting(vmm: Vmm) -> (Running, Client) {
    listening(vmm.guest(counts).stdin(Stdio::piped()).start().prints("ready"))
}

/// Makes a snapshot in `dir`.
#[track_caller]
fn save(client: &Client, dir: &Dir) {
    client.ctl(&["snapshot", dir.path("snap").to_str().unwrap()]).exits(0).silently();
}

/// A machine that is to go on from the snapshot in `dir` as the one that was saved.
fn restored(dir: &Dir) -> Vmm {
    renewed(dir).args(["--identity", "keep"])
}

/// A machine that is to be another one.
fn renewed(dir: &Dir) -> Vmm {
    Vmm::new().args(["--restore".into(), dir.path("snap")]).stdin(Stdio::piped())
}

#[test]
fn a_machine_goes_on_where_it_was_saved_as_often_as_one_likes() {
    let (running, client) = counting(vmm());
    let running = running.types("x").prints("Aa").types("x").prints("Bb");
    let dir = Dir::new();
    save(&client, &dir);
    let running = running.types("x").prints("Cc");
    let one = restored(&dir).start().types("x").prints("Cc").types("x").prints("Dd");
    let other = restored(&dir).args(["--clock", "host"]).start();
    let other = other.types("x").prints("Cc");
    for running in [running, one, other] {
        running.types("q").wait().exits(0).silently();
    }
}

#[test]
fn what_was_restored_is_saved_again() {
    let (running, client) = counting(vmm());
    let running = running.types("x").prints("Aa");
    let mut dir = Dir::new();
    save(&client, &dir);
    drop(running);
    for expected in ["Bb", "Cc", "Dd"] {
        let vmm = restored(&dir).args(["--api-sock", crate::api::SOCKET]);
        let (running, client) = listening(vmm.start());
        let running = running.types("x").prints(expected);
        let next = Dir::new();
        save(&client, &next);
        // All that a machine of it has is in the new one.
        drop(running);
        dir = next;
    }
    restored(&dir).start().types("x").prints("Ee").types("q").wait().exits(0).silently();
}

#[test]
fn a_snapshot_can_end_the_machine_and_its_memory_is_sparse() {
    use std::os::unix::fs::MetadataExt;
    let (running, client) = counting(vmm().args(["--mem", "1G", "--cpus", "2"]));
    let running = running.types("x").prints("Aa");
    let dir = Dir::new();
    let path = dir.path("snap");
    client.ctl(&["snapshot", path.to_str().unwrap(), "--stop"]).exits(0).silently();
    running.wait().exits(8).says(&["stopped over the API"]);
    let memory = path.join("memory").metadata().unwrap();
    assert_eq!(memory.len(), (1 << 30) + 16);
    assert!(memory.blocks() * 512 < 4 << 20, "{} KiB", memory.blocks() / 2);
    restored(&dir).start().types("x").prints("Bb").types("q").wait().exits(0).silently();
}

#[test]
fn a_reboot_ends_what_was_restored() {
    let (_running, client) = counting(vmm());
    let dir = Dir::new();
    save(&client, &dir);
    restored(&dir).start().types("r").wait().exits(4).says(&["the guest rebooted"]);
}

#[test]
fn a_machine_with_a_name_is_saved_and_goes_on_under_other_names() {
    let folder = Dir::new();
    let named = |vmm: Vmm| vmm.env("XDG_RUNTIME_DIR", folder.path("."));
    let running = named(Vmm::new()).args(["--name", "first"]).guest(counts).stdin(Stdio::piped());
    let running = running.start().prints("ready").types("x").prints("Aa");
    let dir = Dir::new();
    let snap = dir.path("snap");
    let save = named(Vmm::new()).args(["ctl", "first", "snapshot", snap.to_str().unwrap()]);
    save.run().exits(0).silently();
    let three = named(restored(&dir)).args(["-d", "--name", "three"]);
    three.run().exits(0).silently();
    named(Vmm::new()).args(["ctl", "three", "stop"]).run().exits(0).silently();
    let all = ["one", "two"].map(|name| named(restored(&dir)).args(["--name", name]).start());
    for copy in all {
        copy.types("x").prints("Bb").types("q").wait().exits(0).silently();
    }
    running.types("q").wait().exits(0).silently();
}

#[test]
fn a_jail_of_roots_holds_what_was_restored() {
    if !crate::jail::is_root() {
        return eprintln!("SKIPPED: only root can become another user");
    }
    let (running, client) = counting(vmm().args(["--mem", "64M,max=192M"]));
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    let jailed = restored(&dir).args(["--jail", "user=65534"]).start();
    jailed.types("x").prints("Aa").types("q").wait().exits(0);
}

#[test]
fn many_machines_are_made_of_one_snapshot_at_once() {
    let folder = Dir::new();
    let named = |vmm: Vmm| vmm.env("XDG_RUNTIME_DIR", folder.path("."));
    let (running, client) = counting(vmm());
    let dir = Dir::new();
    save(&client, &dir);
    drop(running);
    let many = named(restored(&dir)).args(["--count", "5", "--name", "web"]).run().exits(0);
    let many = many.silently();
    assert_eq!(String::from_utf8_lossy(&many.stdout), "web-1\nweb-2\nweb-3\nweb-4\nweb-5\n");
    for name in ["web-1", "web-2", "web-3", "web-4", "web-5"] {
        named(Vmm::new()).args(["ctl", name, "stop"]).run().exits(0).silently();
    }
    restored(&dir).args(["--count", "5"]).run().refuses(2, &["--count", "--name"]);
}

#[test]
fn flags_that_say_something_else_of_the_machine_are_refused() {
    let (_running, client) = counting(vmm());
    let dir = Dir::new();
    save(&client, &dir);
    for (args, words) in [
        (&["--mem", "1G"][..], "leave --mem out"),
        (&["--cpus", "3"], "leave --cpus out"),
        (&["--cmdline", "x"], "leave --cmdline out"),
        (&["--kernel", "x"], "leave --kernel out"),
        (&["--disk", "x"], "the snapshot has 0 disks"),
        (&["--net", "user"], "the snapshot has 0 network cards"),
        (&["--", "true"], "leave COMMAND"),
    ] {
        restored(&dir)
            .args(args)
            .run()
            .refuses(if args[0] == "--" { 125 } else { 3 }, &["--restore", words]);
    }
    Vmm::new()
        .args(["--restore", "nowhere"])
        .run()
        .refuses(3, &["--restore nowhere", "No such file"]);
    client
        .ctl(&["snapshot", dir.path("snap").to_str().unwrap()])
        .refuses(1, &["it exists already"]);
}

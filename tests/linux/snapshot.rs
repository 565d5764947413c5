//! Stock kernels that go on from a snapshot.

use std::path::Path;
use std::process::Stdio;

use super::disk::full;
use super::{AMD64_BZIMAGE, IN_A_BOX, Kernel, SMALL_ELF, disk};
use crate::api::{Client, SOCKET, listening, vmm};
use crate::fixture::{Dir, Outcome, Running, Vmm};
use crate::snapshot::diff;

/// A shell that runs `script` line by line as it is typed, with an API.
fn shell(kernel: Kernel, args: &[&str], more: Vec<std::ffi::OsString>) -> Vmm {
    let vmm = kernel.runs("exec sh").args(args).args(["--api-sock", SOCKET]).args(more);
    vmm.stdin(Stdio::piped())
}

/// The machine that goes on from `snapshot`.
fn restored(snapshot: &Path, args: &[&str]) -> Running {
    let vmm = Vmm::new().patiently(IN_A_BOX).args(["--restore".into(), snapshot.to_owned()]);
    vmm.args(args).stdin(Stdio::piped()).start()
}

/// What the line `name=` of the output has.
fn value(outcome: &Outcome, name: &str) -> String {
    super::Console::of(outcome).value(name).to_owned()
}

/// Two machines go on from one snapshot, with other random numbers.
fn go_on_twice(kernel: Kernel, cpus: &str) {
    let dir = Dir::new();
    let snapshot = dir.path("snap");
    let image = full(&dir, "disk", 1 << 20);
    let vmm = shell(kernel, &["--cpus", cpus], disk(&image, ",overlay").into());
    let (running, client) = listening(vmm.start());
    // What the kernel says of its boot, as of the TSC in a busy box, is no matter here.
    let running = running.types("dmesg -c >/dev/null; echo up=1; echo hello > /tmp/file; echo abc | dd of=/dev/vda conv=sync 2>/dev/null; sync; echo here=$((1))\n");
    let running = running.prints("here=1");
    client.ctl(&["snapshot", snapshot.to_str().unwrap()]).exits(0).silently();
    running.types("cat /tmp/file; poweroff -f\n").wait().exits(0);
    let all: Vec<_> = (0..2).map(|_| restored(&snapshot, &[])).collect();
    let ask = "echo file=$(cat /tmp/file); echo disk=$(head -c 3 /dev/vda); \
        dd if=/dev/vda of=/dev/null iflag=direct bs=4k count=64 2>/dev/null && echo read=ok; \
        echo random=$(od -An -N8 -tx1 /dev/urandom); echo cpus=$(nproc); echo more >> /tmp/file; \
        dd if=/tmp/file of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null && echo written=ok; \
        echo wrong=$(dmesg | grep -E '[O]ops|[B]UG|[s]oft lockup|[c]locksource.*unstable|[r]cu.*stall'); \
        echo told=$(dmesg | grep -c 'crng reseeded due to virtual machine fork'); poweroff -f\n";
    let ended: Vec<_> = all
        .into_iter()
        .map(|one| one.types(ask).wait().exits(0).says(&["without --name NAME"]))
        .collect();
    for outcome in &ended {
        let console = super::Console::of(outcome);
        console.has("file", "hello").has("disk", "abc").has("read", "ok").has("written", "ok");
        console.has("cpus", cpus).has("wrong", "").has("told", "1");
    }
    let [one, other] = [&ended[0], &ended[1]].map(|outcome| value(outcome, "random"));
    assert!(one != other, "{one}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn two_machines_go_on_from_one_snapshot_of_the_small_kernel() {
    go_on_twice(SMALL_ELF, "2");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn two_machines_go_on_from_one_snapshot_of_a_stock_kernel() {
    go_on_twice(AMD64_BZIMAGE, "1");
}

/// Prints `here=NUMBER`, which the echo of the line does not have.
fn here(number: u32) -> String {
    format!("echo here=$(({number}))\n")
}

/// The machine that a client has loaded of that state and that memory in `dir`.
fn loaded(dir: &Dir, state: &str, memory: &str) -> (Running, Client) {
    let vmm = vmm().args(["--snapshots".into(), dir.path(".")]).stdin(Stdio::piped());
    let (running, client) = listening(vmm.patiently(IN_A_BOX).start());
    client.does("PUT", "/snapshot/load", &diff::load(dir, state, memory));
    (running, client)
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_diff_of_a_machine_that_has_freed_and_filled_memory_is_all_of_it() {
    let dir = Dir::new();
    let folder = ["--snapshots".into(), dir.path(".").into()];
    let (running, client) = listening(shell(SMALL_ELF, &["--mem", "128M"], folder.into()).start());
    let fill =
        |name: &str| format!("dd if=/dev/urandom of=/tmp/{name} bs=64k count=160 2>/dev/null; ");
    let _running = running.types(&(fill("first") + &here(1))).prints("here=1");
    diff::pause(&client);
    diff::create(&client, &dir, "base", "Full");
    // What is freed is reported after two seconds.
    let change = fill("second") + "cp /tmp/second /tmp/third; rm /tmp/first; sleep 4; ";
    let (running, client) = loaded(&dir, "base", "base");
    let sum = "for f in second third; do echo $f=$(md5sum </tmp/$f); done; ";
    let running = running.types(&(change + sum + &here(2))).prints("here=2");
    diff::pause(&client);
    diff::create(&client, &dir, "diff", "Diff");
    diff::create(&client, &dir, "whole", "Full");
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    let before = running.types("poweroff -f\n").wait().exits(0);
    diff::copy_over(&dir, "base", "diff");
    diff::ensure_same_ram(&dir, "base", "whole", 128 << 20);
    let (running, _client) = loaded(&dir, "diff", "base");
    let after = running.types(&(sum.to_owned() + "poweroff -f\n")).wait().exits(0);
    for file in ["second", "third"] {
        assert_eq!(value(&before, file), value(&after, file));
        assert_eq!(value(&before, file), value(&before, "second"));
    }
}

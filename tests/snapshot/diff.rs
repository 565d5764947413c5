//! Diff snapshots: what has changed, to be copied over the memory that it was made over.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Stdio;

use rustix::fs::{SeekFrom, seek};

use super::counting;
use crate::api::{Client, listening, vmm};
use crate::fixture::{Dir, Running};

/// Bytes of RAM that `counting` has.
const RAM: usize = 256 << 20;

fn path(dir: &Dir, name: &str) -> String {
    dir.path(name).display().to_string()
}

/// Pauses the machine.
pub fn pause(client: &Client) {
    client.does("PATCH", "/vm", r#"{"state":"Paused"}"#);
}

/// Makes a snapshot of this type, `NAME.state` and `NAME.memory` in `dir`, of a machine that is paused.
pub fn create(client: &Client, dir: &Dir, name: &str, kind: &str) {
    let [state, memory] = ["state", "memory"].map(|of| path(dir, &format!("{name}.{of}")));
    let body = format!(
        r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}","snapshot_type":"{kind}"}}"#
    );
    client.does("PUT", "/snapshot/create", &body);
}

/// The body that loads that state with that memory.
pub fn load(dir: &Dir, state: &str, memory: &str) -> String {
    format!(
        r#"{{"snapshot_path":"{}","mem_backend":{{"backend_type":"File","backend_path":"{}"}},
            "resume_vm":true,"track_dirty_pages":true}}"#,
        path(dir, &format!("{state}.state")),
        path(dir, &format!("{memory}.memory")),
    )
}

/// A machine that is made of them.
pub fn loaded(dir: &Dir, state: &str, memory: &str) -> (Running, Client) {
    let waiting = vmm().args(["--snapshots".into(), dir.path(".")]).stdin(Stdio::piped());
    let (running, client) = listening(waiting.start());
    client.does("PUT", "/snapshot/load", &load(dir, state, memory));
    assert_eq!(client.get("/machine-config")["track_dirty_pages"], true);
    (running, client)
}

/// Copies the data of `diff` over `base`, both files of memory in `dir`, as `snapshot-editor edit-memory rebase` does.
pub fn copy_over(dir: &Dir, base: &str, diff: &str) {
    let base = File::options().write(true).open(dir.path(format!("{base}.memory"))).unwrap();
    let diff = File::open(dir.path(format!("{diff}.memory"))).unwrap();
    let mut at = 0;
    while let Ok(start) = seek(&diff, SeekFrom::Data(at)) {
        at = seek(&diff, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        diff.read_exact_at(&mut bytes, start).unwrap();
        base.write_all_at(&bytes, start).unwrap();
    }
}

/// Checks that two files of memory in `dir` have the same `ram` bytes first.
pub fn ensure_same_ram(dir: &Dir, one: &str, other: &str, ram: usize) {
    let read = |name: &str| {
        let mut bytes = fs::read(dir.path(format!("{name}.memory"))).unwrap();
        assert!(bytes.len() > ram);
        bytes.truncate(ram);
        bytes
    };
    assert!(read(one) == read(other), "{one} and {other} have other bytes");
}

#[test]
fn diffs_copied_over_their_base_are_the_machine() {
    let dir = Dir::new();
    let (running, client) = counting(vmm().args(["--snapshots".into(), dir.path(".")]));
    let running = running.types("x").prints("Aa");
    pause(&client);
    create(&client, &dir, "base", "Diff"); // of a machine that was booted: all that there is
    drop(running);

    let (running, client) = loaded(&dir, "base", "base");
    let running = running.types("x").prints("Bb");
    pause(&client);
    create(&client, &dir, "first", "Diff");
    create(&client, &dir, "whole", "Full");
    drop(running);
    let blocks = |name: &str| dir.path(format!("{name}.memory")).metadata().unwrap().blocks();
    assert!(blocks("first") < blocks("base"), "{} and {}", blocks("first"), blocks("base"));

    // By itself it is no machine.
    let (waiting, client) = listening(vmm().stdin(Stdio::piped()).start());
    client.refuses("PUT", "/snapshot/load", &load(&dir, "first", "first"), &["a Diff"]);
    client.refuses("PUT", "/snapshot/load", &load(&dir, "first", "base"), &["a Diff"]);
    drop(waiting);

    copy_over(&dir, "base", "first");
    ensure_same_ram(&dir, "base", "whole", RAM);
    let (running, client) = loaded(&dir, "first", "base");
    let running = running.types("x").prints("Cc");
    pause(&client);
    // A Diff of a Diff.
    create(&client, &dir, "second", "Diff");
    drop(running);
    copy_over(&dir, "base", "second");
    let (running, client) = loaded(&dir, "second", "base");
    let running = running.types("x").prints("Dd");
    pause(&client);
    create(&client, &dir, "now", "Full");
    client.does("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    let running = running.types("x").prints("Ee");
    pause(&client);
    // It goes over the last one that is Full.
    create(&client, &dir, "third", "Diff");
    drop(running);
    copy_over(&dir, "now", "third");
    let (running, _client) = loaded(&dir, "third", "now");
    running.types("xq").prints("Ff").wait().exits(0).silently();
}

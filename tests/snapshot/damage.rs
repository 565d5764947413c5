//! Snapshots that are not as they were made.

use std::fs;

use tinyvmm_cli::snapshot::Snapshot;

use super::{counting, restored, save};
use crate::api::{SOCKET, vmm};
use crate::fixture::{Dir, Vmm};

fn made() -> Dir {
    let (_running, client) = counting(vmm().args(["--cpus", "2"]));
    let dir = Dir::new();
    save(&client, &dir);
    dir
}

#[test]
fn each_byte_of_the_state_counts() {
    let dir = made();
    let whole = fs::read(dir.path("snap/state")).unwrap();
    Snapshot::from_bytes(&whole).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(Snapshot::from_bytes(&bytes).is_err(), "byte {at}");
    }
    for len in (0..whole.len()).step_by(97) {
        assert!(Snapshot::from_bytes(&whole[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn what_is_damaged_is_named() {
    let refused = |change: fn(&Dir), words: &[&str]| {
        let dir = made();
        change(&dir);
        restored(&dir).run().refuses(3, words);
    };
    refused(|dir| fs::write(dir.path("snap/state"), "").unwrap(), &["state", "it is no snapshot"]);
    refused(
        |dir| {
            let text = fs::read_to_string(dir.path("snap/state")).unwrap();
            fs::write(dir.path("snap/state"), text.replacen("snapshot 2", "snapshot 4", 1))
                .unwrap();
        },
        &["state", "version 4", "knows 3"],
    );
    refused(
        |dir| {
            let text = fs::read_to_string(dir.path("snap/state")).unwrap();
            fs::write(dir.path("snap/state"), text.replacen("0", "1", 1)).unwrap();
        },
        &["state", "checksum"],
    );
    refused(
        |dir| {
            let text = fs::read_to_string(dir.path("snap/machine.json")).unwrap();
            fs::write(dir.path("snap/machine.json"), text.replace("256M", "512M")).unwrap();
        },
        &["machine.json", "not as the snapshot was made"],
    );
    refused(|dir| fs::write(dir.path("snap/machine.json"), "{").unwrap(), &["machine.json", "EOF"]);
    refused(|dir| fs::remove_file(dir.path("snap/memory")).unwrap(), &["memory", "No such file"]);
    refused(
        |dir| {
            let memory = fs::File::options().write(true).open(dir.path("snap/memory")).unwrap();
            memory.set_len(1 << 20).unwrap();
        },
        &["memory", "it is damaged"],
    );
    refused(
        |dir| {
            // Another one of the same size.
            let other = made();
            fs::copy(other.path("snap/memory"), dir.path("snap/memory")).unwrap();
        },
        &["memory", "another snapshot's"],
    );
    refused(
        |dir| {
            // Its end was not copied.
            let memory = fs::File::options().write(true).open(dir.path("snap/memory")).unwrap();
            let len = memory.metadata().unwrap().len();
            memory.set_len(len - (1 << 20)).unwrap();
            memory.set_len(len).unwrap();
        },
        &["memory", "copied to its end"],
    );
}

#[test]
fn a_machine_that_cannot_be_saved_runs_on_even_if_it_was_to_end() {
    let limited = Vmm::started_by(&["sh", "-c", "ulimit -f 1000; exec \"$@\"", "sh"]);
    let (running, client) = counting(limited.args(["--api-sock", SOCKET]));
    let dir = Dir::new();
    let snapshot = client.ctl(&["snapshot", dir.path("snap").to_str().unwrap(), "--stop"]);
    snapshot.refuses(1, &["snap", "memory", "File too large"]);
    assert_eq!(client.get("/")["state"], "Running");
    assert_eq!(fs::read_dir(dir.path(".")).unwrap().count(), 0);
    running.types("xq").prints("Aa").wait().exits(0).silently();
}

#[test]
fn a_client_that_ends_early_leaves_no_snapshot() {
    let (running, client) = counting(vmm());
    let dir = Dir::new();
    client.refuses("PUT", "/tinyvmm/snapshot", "", &["has the files state, memory"]);
    client
        .ctl(&["snapshot", dir.path("no/snap").to_str().unwrap()])
        .refuses(1, &["no/snap", "No such"]);
    assert_eq!(fs::read_dir(dir.path(".")).unwrap().count(), 0);
    running.types("xq").prints("Aa").wait().exits(0).silently();
}

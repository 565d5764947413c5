//! Snapshots of older versions of the format: one of each is kept in `versions/`, of the guest `counts` after one byte, with
//! 16 MiB of RAM, room for 16 more, and a vsock device.

use std::fs::{self, File};
use std::io::{self, Read};

use flate2::read::GzDecoder;
use serde_json::Value;
use tinyvmm_cli::snapshot::Snapshot;

use super::{counting, restored, save};
use crate::api::vmm;
use crate::fixture::Dir;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/snapshot/versions");
/// The latest one.
const LATEST: u32 = 2;
/// What is of the processor, and of KVM, that the snapshot was made with.
const OF_PROCESSOR: [&str; 6] = ["cpuid", "msrs", "xsave", "xcrs", "tsc_khz", "tsc_offset"];

/// The parts of a file `state`: the line with the version, and the JSON.
fn parts(state: &[u8]) -> (String, Value) {
    let text = str::from_utf8(state).unwrap();
    let mut lines = text.splitn(3, '\n');
    let version = lines.next().unwrap().to_owned();
    (version, serde_json::from_str(lines.nth(1).unwrap()).unwrap())
}

/// `state`, made on another processor, as if it had been made on that of `here`.
fn moved(state: &[u8], here: &[u8]) -> Vec<u8> {
    let ((version, mut old), (_, new)) = (parts(state), parts(here));
    for name in OF_PROCESSOR {
        old["state"]["cpus"][0][name] = new["state"]["cpus"][0][name].clone();
    }
    old["state"]["vm"]["tsc"] = new["state"]["vm"]["tsc"].clone();
    let json = serde_json::to_vec(&old).unwrap();
    let hash = blake3::hash(&json).to_hex();
    [format!("{version}\n{hash}\n").as_bytes(), &json].concat()
}

#[test]
fn snapshots_of_each_version_are_read_and_go_on() {
    let (running, client) = counting(vmm());
    let latest = Dir::new();
    save(&client, &latest);
    drop(running);
    let here = fs::read(latest.path("snap/state")).unwrap();
    assert_eq!(parts(&here).0, format!("tinyvmm snapshot {LATEST}"), "keep one of the new version");
    for version in 1..=LATEST {
        let file = |name: &str| File::open(format!("{FOLDER}/{version}/{name}")).unwrap();
        let mut state = Vec::new();
        GzDecoder::new(file("state.gz")).read_to_end(&mut state).unwrap();
        assert_eq!(parts(&state).0, format!("tinyvmm snapshot {version}"));
        Snapshot::from_bytes(&state).unwrap();
        let dir = Dir::new();
        fs::create_dir(dir.path("snap")).unwrap();
        fs::write(dir.path("snap/state"), moved(&state, &here)).unwrap();
        // Most of it is zero, and so is what gzip makes of that.
        let mut memory = GzDecoder::new(GzDecoder::new(file("memory.gz.gz")));
        io::copy(&mut memory, &mut File::create(dir.path("snap/memory")).unwrap()).unwrap();
        let mut text = String::new();
        file("machine.json").read_to_string(&mut text).unwrap();
        fs::write(dir.path("snap/machine.json"), text).unwrap();
        restored(&dir).start().types("x").prints("Bb").types("q").wait().exits(0);
    }
}

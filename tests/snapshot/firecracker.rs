//! Snapshots as clients of Firecracker make and load them.

use std::fs;
use std::process::Stdio;

use super::{counting, restored};
use crate::api::{SOCKET, listening, vmm};
use crate::fixture::Dir;

const PAUSED: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state":"Paused"}"#);
const RESUMED: (&str, &str, &str) = ("PATCH", "/vm", r#"{"state":"Resumed"}"#);

#[test]
fn a_client_makes_a_snapshot_and_another_process_loads_it() {
    let dir = Dir::new();
    let path = |name: &str| dir.path(name).display().to_string();
    let create = |state: &str, memory: &str| {
        format!(
            r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}","snapshot_type":"Full"}}"#
        )
    };
    let (running, client) = counting(vmm().args(["--snapshots".into(), dir.path(".")]));
    let running = running.types("x").prints("Aa");
    let body = create(&path("state"), &path("memory"));
    client.refuses("PUT", "/snapshot/create", &body, &["pause it first"]);
    client.does(PAUSED.0, PAUSED.1, PAUSED.2);
    client.does("PUT", "/snapshot/create", &body);
    client.refuses("PUT", "/snapshot/create", &body, &["state", "a new file"]);
    let elsewhere = Dir::new();
    let out = create(&elsewhere.path("a").display().to_string(), &path("b"));
    client.refuses("PUT", "/snapshot/create", &out, &["--snapshots"]);
    client.does(RESUMED.0, RESUMED.1, RESUMED.2);
    running.types("xq").prints("Bb").wait().exits(0).silently();
    assert_eq!(fs::read_dir(elsewhere.path(".")).unwrap().count(), 0);

    for resume in [true, false] {
        let load = format!(
            r#"{{"snapshot_path":"{}","mem_backend":{{"backend_type":"File","backend_path":"{}"}},"resume_vm":{resume}}}"#,
            path("state"),
            path("memory")
        );
        let (running, client) = listening(vmm().stdin(Stdio::piped()).start());
        client.refuses(
            "PUT",
            "/snapshot/load",
            &load.replace("memory\"", "no\""),
            &["no", "No such file"],
        );
        client.does("PUT", "/snapshot/load", &load);
        client.refuses("PUT", "/snapshot/load", &load, &["after starting"]);
        let state = if resume { "Running" } else { "Paused" };
        assert_eq!(client.get("/")["state"], state);
        if !resume {
            client.does(RESUMED.0, RESUMED.1, RESUMED.2);
        }
        running.types("x").prints("Bb").types("q").wait().exits(0).silently();
    }
}

#[test]
fn without_a_folder_for_them_a_client_makes_none() {
    let dir = Dir::new();
    let (_running, client) = counting(vmm());
    client.does(PAUSED.0, PAUSED.1, PAUSED.2);
    let path = |name: &str| dir.path(name).display().to_string();
    let body = format!(r#"{{"snapshot_path":"{}","mem_file_path":"{}"}}"#, path("a"), path("b"));
    client.refuses("PUT", "/snapshot/create", &body, &["--snapshots DIR"]);
    // The files come along with the request of `tinyvmm ctl`.
    client.ctl(&["snapshot", dir.path("snap").to_str().unwrap()]).exits(0).silently();
    assert_eq!(client.get("/")["state"], "Paused");
    restored(&dir).args(["--api-sock", SOCKET]).start().types("xq").prints("Aa").wait().exits(0);
}

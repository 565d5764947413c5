//! Requests of other programs' clients: curl, and the HTTP libraries of Go and Python.

use std::io::Write;
use std::process::Command;

use super::{Client, listening, read_answer, vmm, waiting};
use crate::fixture::{Dir, Running};
use crate::guests;

const START: &str = r#"{"action_type":"InstanceStart"}"#;

/// What curl prints, with the status at the end; `None` where there is no curl.
fn curl(client: &Client, path: &str, args: &[&str]) -> Option<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--unix-socket"]).arg(&client.0);
    curl.args(["--max-time", "60", "--write-out", "%{http_code}"]).args(args);
    let output = curl.arg(format!("http://localhost{path}")).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn curl_is_understood_as_firecrackers_guide_has_it() {
    let (running, client) = waiting(guests::hello);
    let Some(version) = curl(&client, "/version", &[]) else {
        return eprintln!("SKIPPED: no curl");
    };
    assert!(version.ends_with("}200"), "{version}");
    // curl's own Content-Type, a form's.
    let put = |path: &str, body: &str, more: &[&str]| {
        curl(&client, path, &[&["-X", "PUT", "--data", body], more].concat()).unwrap()
    };
    let machine = r#"{"vcpu_count": 1, "mem_size_mib": 64}"#;
    assert_eq!(put("/machine-config", machine, &[]), "204");
    let args = "x".repeat(1900);
    let source = format!(r#"{{"kernel_image_path":"./vmlinux","boot_args":"{args}"}}"#);
    // curl waits for 100 Continue, as it does by itself with long bodies.
    assert_eq!(put("/boot-source", &source, &["-H", "Expect: 100-continue"]), "204");
    let drive = r#"{"drive_id":"a","path_on_host":"./disk","is_root_device":true}"#;
    assert_eq!(put("/drives/a", drive, &["-H", "Content-Type: application/json"]), "204");
    assert!(put("/boot-source", "{", &[]).ends_with("400"));
    let chunked = put("/actions", START, &["-H", "Transfer-Encoding: chunked"]);
    assert!(chunked.contains("Content-Length") && chunked.ends_with("411"), "{chunked}");
    // Two requests over one connection, and the offer of another version of HTTP.
    let both = curl(&client, "/version", &["--http2", "http://localhost/"]).unwrap();
    assert_eq!(both.matches("}200").count(), 2, "{both}");
    assert_eq!(put("/actions", START, &["-H", "Content-Type: text/plain"]), "204");
    running.wait().exits(0).prints("hello");
}

#[test]
fn the_python_client_describes_a_machine_and_makes_a_copy_of_it() {
    let snapshot = Dir::new();
    let [socket, copy] = [(); 2].map(|()| waiting_with(guests::obedient, &snapshot));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/client/python.py");
    let mut python = Command::new("python3");
    let python = python.arg(script).args([&socket.1.0, &copy.1.0]).arg(snapshot.path("."));
    let Ok(output) = python.output() else { return eprintln!("SKIPPED: no python3") };
    if output.status.code() == Some(77) {
        return eprintln!("SKIPPED: no firecracker-python, see scripts/check");
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (running, _) in [socket, copy] {
        running.wait().exits(0).prints("button").silently();
    }
}

/// One that waits, and may make snapshots in this folder.
fn waiting_with(code: fn() -> Vec<u8>, snapshots: &Dir) -> (Running, Client) {
    let vmm = vmm().file("vmlinux", guests::elf(&code())).sparse_file("disk", 1 << 20);
    listening(vmm.args(["--snapshots".into(), snapshots.path(".")]).start())
}

#[test]
fn a_target_can_be_a_whole_uri() {
    let (_running, client) = waiting(guests::hello);
    for target in ["http://localhost/version", "http://localhost:80/version/", "/version?"] {
        assert!(client.get(target)["firecracker_version"].is_string(), "{target}");
    }
    assert_eq!(client.get("http://localhost")["state"], "Not started");
    let body = "\u{feff}{\"vcpu_count\": 1, \"mem_size_mib\": 32}\r\n";
    client.does("PUT", "http://localhost/machine-config", body);
    assert_eq!(client.get("/machine-config")["mem_size_mib"], 32);
    client.refuses("GET", "/version?format=text", "", &["/version?format=text", "query"]);
}

#[test]
fn header_fields_are_taken_in_any_case_and_order() {
    let (_running, client) = waiting(guests::hello);
    let request = b"put /x HTTP/1.1\r\n\r\n";
    let mut stream = client.connect();
    stream.write_all(request).unwrap();
    assert_eq!(read_answer(&mut stream).0, 400, "methods have a case");
    let request =
        b"PUT /machine-config HTTP/1.1\r\nuser-agent: caf\xe9\r\nconnection: TE, Close\r\n\
        content-length: 35\r\n\r\n{\"vcpu_count\":1,\"mem_size_mib\":32}\n";
    let mut stream = client.connect();
    stream.write_all(request).unwrap();
    assert_eq!(read_answer(&mut stream).0, 204);
}

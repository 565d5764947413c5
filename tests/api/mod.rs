//! The API: what clients can do, and what they cannot do to a machine.

mod abuse;
mod after_boot;
mod before_boot;
mod clients;
mod cpu;
mod ctl;
mod exchange;
mod firecracker;
mod interfaces;
mod jailer;
mod outputs;
mod words;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{Outcome, Running, Vmm};
use crate::guests;

pub const SOCKET: &str = "api.sock";

/// A tinyvmm that listens.
pub fn vmm() -> Vmm {
    Vmm::new().args(["--api-sock", SOCKET])
}

/// A machine that runs from the start.
#[track_caller]
fn running(code: fn() -> Vec<u8>, prints: &str) -> (Running, Client) {
    listening(vmm().guest(code).start().prints(prints))
}

/// A machine that waits for its configuration, in a folder with a kernel and a disk.
#[track_caller]
fn waiting(code: fn() -> Vec<u8>) -> (Running, Client) {
    let vmm = vmm().file("vmlinux", guests::elf(&code())).sparse_file("disk", 1 << 20);
    listening(vmm.file("initrd", "x").start())
}

#[track_caller]
pub fn listening(running: Running) -> (Running, Client) {
    let running = running.until(|vm| UnixStream::connect(vm.dir().path(SOCKET)).is_ok());
    let client = Client(running.dir().path(SOCKET));
    (running, client)
}

/// A client that connects for each request.
pub struct Client(PathBuf);

impl Client {
    fn connect(&self) -> UnixStream {
        connect(&self.0)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = self.connect();
        let len = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len}");
        // In one write: the server does not wait for a body that is too large.
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        read_answer(&mut stream)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask("GET", path, "");
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    /// Makes a request that succeeds.
    #[track_caller]
    pub fn does(&self, method: &str, path: &str, body: &str) {
        assert_eq!(self.ask(method, path, body), (204, Value::Null), "{method} {path} {body}");
    }

    /// Runs `tinyvmm ctl` with these arguments.
    pub fn ctl(&self, args: &[&str]) -> Outcome {
        Vmm::new().args(["ctl", self.0.to_str().unwrap()]).args(args).run()
    }

    /// Makes a request that is refused with a message that has all of these words.
    #[track_caller]
    pub fn refuses(&self, method: &str, path: &str, body: &str, words: &[&str]) {
        let (status, value) = self.ask(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}: {value}");
        let fault = value["fault_message"].as_str().expect("a fault message");
        for word in words {
            assert!(fault.contains(word), "'{word}' is not in: {fault}");
        }
        assert_eq!(value.as_object().unwrap().len(), 1, "{value}");
    }
}

pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Reads the response up to the connection's end; returns status and body.
#[track_caller]
fn read_answer(stream: &mut UnixStream) -> (u16, Value) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    // A body that is too large is answered with a line break within a string.
    let body = body.replace('\n', " ");
    let value = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
    assert_eq!(head.contains("Content-Type: application/json"), !body.is_empty(), "{head}");
    (status, value)
}

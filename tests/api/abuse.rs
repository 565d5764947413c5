//! Clients that send nonsense, are slow, die or are too many: the machine is not affected.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::{Client, connect, listening, read_answer, running, vmm, waiting};
use crate::guests;

#[track_caller]
fn status(client: &Client, bytes: &[u8]) -> u16 {
    let mut stream = client.connect();
    stream.write_all(bytes).unwrap();
    read_answer(&mut stream).0
}

#[test]
fn what_is_no_request_is_refused_and_closed() {
    let (_running, client) = running(guests::idle, "idle");
    for (bytes, expected) in [
        (&b"hello\r\n\r\n"[..], 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"DELETE / HTTP/1.1\r\n\r\n", 400),
        (b"PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"PUT /vm HTTP/1.1\r\nContent-Length: 5x\r\n\r\n", 400),
        (b"PUT /vm HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", 400),
        (b"PUT /vm HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", 200),
    ] {
        let request = String::from_utf8_lossy(bytes);
        assert_eq!(status(&client, bytes), expected, "{request}");
    }
    let endless = [b"GET / HTTP/1.1\r\n", "X: y\r\n".repeat(3000).as_bytes()].concat();
    let mut stream = client.connect();
    // The connection may be closed before all of it is written.
    let _ = stream.write_all(&endless);
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer == *b"HTTP/1.1 400" || answer == *b"HTTP/1.1 431");
    let deep = format!(r#"{{"rate_limiter":{}"#, "[".repeat(40_000));
    client.refuses("PUT", "/entropy", &deep, &["json body of a request: "]);
    client.get("/");
}

#[test]
fn the_limit_of_a_body_can_be_moved() {
    let vmm = vmm().guest(guests::idle).args(["--http-api-max-payload-size", "100"]);
    let (_running, client) = listening(vmm.start().prints("idle"));
    let body = |len: usize| format!(r#"{{"state":"Paused"}}{}"#, " ".repeat(len - 18));
    client.does("PATCH", "/vm", &body(100));
    let (status, value) = client.ask("PATCH", "/vm", &body(101));
    let error = value["error"].as_str().unwrap();
    assert!(status == 400 && error.contains("size 101 is larger than the limit of 100"), "{value}");
}

#[test]
fn who_sends_too_much_can_send_all_of_it_and_gets_an_answer() {
    let (_running, client) = running(guests::idle, "idle");
    let mut stream = client.connect();
    stream.write_all(b"PUT /vm HTTP/1.1\r\nContent-Length: 6400000\r\n\r\n").unwrap();
    for _ in 0..100 {
        stream.write_all(&[b' '; 64_000]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_request_can_come_in_pieces_and_several_at_once() {
    let (_running, client) = running(guests::idle, "idle");
    let request = b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
    let mut stream = client.connect();
    for byte in request {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204 No ");
    let mut stream = client.connect();
    let many = b"GET / HTTP/1.1\r\n\r\n".repeat(100);
    stream.write_all(&many).unwrap();
    // Half-closed: all requests are answered in spite of that.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 100);
}

#[test]
fn clients_that_dawdle_or_die_are_in_nobodys_way() {
    let (running, client) = running(guests::idle, "idle");
    let before = running.rss_kib();
    for turn in 0..30 {
        let slow: Vec<UnixStream> = (0..40)
            .map(|index| {
                let mut stream = connect(&client.0);
                // The first connections may have been closed.
                let _ = match index % 3 {
                    0 => stream.write_all(b"PUT /vm HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{"),
                    1 => stream.write_all(b"GET / HT"),
                    _ => Ok(()),
                };
                stream
            })
            .collect();
        assert_eq!(client.get("/")["state"], "Running", "turn {turn}");
        drop(slow);
    }
    // Clients that send requests and never read.
    for _ in 0..20 {
        let mut deaf = connect(&client.0);
        let _ = deaf.set_nonblocking(true);
        let many = b"GET /vm/config HTTP/1.1\r\n\r\n".repeat(5000);
        let _ = deaf.write(&many);
        client.get("/");
    }
    assert_eq!(client.get("/")["state"], "Running");
    let fds = client.get("/tinyvmm/stats");
    assert!(fds["state"] == "Running");
    let grown = running.rss_kib().saturating_sub(before);
    assert!(grown < 1 << 10, "memory has grown by {grown} KiB");
}

#[test]
fn a_thousand_connections_leave_room_for_one_more() {
    let (running, client) = waiting(guests::idle);
    let many: Vec<UnixStream> = (0..1000).map(|_| client.connect()).collect();
    assert_eq!(client.get("/")["state"], "Not started");
    drop(many);
    client.get("/");
    drop(running);
}

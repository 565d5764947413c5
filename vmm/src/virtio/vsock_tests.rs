//! A vsock device, driven by hand-made rings, with the test as the host: its programs, and its dialer.

mod ends;
mod hostile;
mod many;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::VirtioDevice;
use super::contract::answer;
use super::saved::DeviceSaved;
use super::test_driver::{DATA, Driver};
use super::vsock::Vsock;
use super::vsock::host::{CALL, Host};
use super::vsock::packet::*;

const RECEIVES: usize = 0;
const SENDS: usize = 1;
const EVENTS: usize = 2;
const CID: u32 = 5;
/// Room for the packets that the driver sends, above buffers for those that come.
const OUT: u64 = DATA + 0x4_0000;
/// The guest's room for data, as the driver says.
const ROOM: u32 = 1 << 18;
/// Bytes of a buffer for what comes.
const BUFFER: u64 = 4096;
/// Buffers that are kept available.
const BUFFERS: u64 = 32;

/// A guest and its host.
struct World {
    driver: Driver,
    path: PathBuf,
    dialer: UnixStream,
    /// The next buffer that comes back.
    next: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn device() -> (Vsock, PathBuf, UnixStream) {
    device_with(|_| {})
}

/// A device whose host was prepared by `prepare`.
fn device_with(prepare: impl Fn(&Host)) -> (Vsock, PathBuf, UnixStream) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("vsock-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let listener = UnixListener::bind(&path).unwrap();
    let (dialer, end) = UnixStream::pair().unwrap();
    dialer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let host = Host::new(listener.into(), end.into()).unwrap();
    prepare(&host);
    (Vsock::new(CID, host), path, dialer)
}

/// A guest without buffers for what comes.
fn bare_world() -> World {
    bare_world_of(device())
}

fn bare_world_of((device, path, dialer): (Vsock, PathBuf, UnixStream)) -> World {
    let mut driver = Driver::new(Box::new(device));
    driver.init();
    World { driver, path, dialer, next: 0 }
}

fn world() -> World {
    let mut world = bare_world();
    world.offers();
    world
}

/// `len` bytes that tell their places.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// A packet of the guest's from its `port` to the host's `to`.
fn packet(op: u16, port: u32, to: u32) -> Packet {
    Packet {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: port,
        dst_port: to,
        kind: STREAM,
        op,
        buf_alloc: ROOM,
        ..Packet::default()
    }
}

impl World {
    fn offer(&mut self, index: u64) {
        self.driver.add(RECEIVES, &[(DATA + index % BUFFERS * BUFFER, BUFFER as u32, true)]);
        if self.driver.wants_kick(RECEIVES) {
            self.driver.kick(RECEIVES);
        }
    }

    /// Offers all buffers to a device that has none.
    fn offers(&mut self) {
        self.next = 0;
        (0..BUFFERS).for_each(|index| self.offer(index));
    }

    /// The guest sends `packet` and `data`.
    fn sends_with(&mut self, packet: &Packet, data: &[u8]) {
        self.driver.write(OUT, &packet.bytes());
        self.driver.write(OUT + HEADER as u64, data);
        let mut buffers = vec![(OUT, HEADER as u32, false)];
        if !data.is_empty() {
            buffers.push((OUT + HEADER as u64, data.len() as u32, false));
        }
        self.driver.add(SENDS, &buffers);
        self.driver.kick(SENDS);
        let (_, written) = self.driver.wait_used(SENDS);
        assert_eq!(written, 0);
    }

    fn sends(&mut self, op: u16, port: u32, to: u32) {
        self.sends_with(&packet(op, port, to), &[]);
    }

    fn sends_data(&mut self, port: u32, to: u32, data: &[u8]) {
        let header = Packet { len: data.len() as u32, ..packet(RW, port, to) };
        self.sends_with(&header, data);
    }

    /// The next packet that the guest receives; its buffer becomes available again.
    fn receives(&mut self) -> (Packet, Vec<u8>) {
        let (_, written) = self.driver.wait_used(RECEIVES);
        let place = DATA + self.next % BUFFERS * BUFFER;
        let mut bytes = self.driver.read(place, written as usize);
        self.offer(self.next);
        self.next += 1;
        let data = bytes.split_off(HEADER);
        let packet = Packet::parse(bytes.try_into().unwrap());
        assert_eq!(packet.len as usize, data.len());
        assert_eq!(packet.dst_cid, u64::from(CID));
        (packet, data)
    }

    /// The next packet, which has to be this.
    #[track_caller]
    fn receives_op(&mut self, op: u16, port: u32, from: u32) -> Packet {
        let (packet, data) = self.receives();
        assert_eq!((packet.op, packet.dst_port, packet.src_port), (op, port, from), "{packet:?}");
        assert_eq!((packet.src_cid, packet.kind), (HOST_CID, STREAM));
        assert!(data.is_empty());
        packet
    }

    /// Nothing is owed to the guest.
    #[track_caller]
    fn is_quiet(&mut self) {
        for _ in 0..3 {
            self.driver.paused(|driver| {
                let waiting = driver.take_used(RECEIVES);
                assert_eq!(waiting, None, "a packet for the guest");
            });
        }
    }

    /// A program of the host that has connected to `port` of the guest; and the host's port.
    fn connects(&mut self, port: u32) -> (UnixStream, u32) {
        let mut stream = self.asks(&format!("CONNECT {port}\n"));
        let (request, _) = self.receives();
        assert_eq!((request.op, request.dst_port, request.src_cid), (REQUEST, port, HOST_CID));
        let host_port = request.src_port;
        self.sends(RESPONSE, port, host_port);
        let mut line = [0; 14];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8_lossy(&line), format!("OK {host_port}\n"));
        (stream, host_port)
    }

    /// A program that has connected and written `line`.
    fn asks(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// The dialer's next call: port and tag.
    fn is_called(&mut self) -> (u32, [u8; 4]) {
        let mut call = [0; CALL];
        self.dialer.read_exact(&mut call).unwrap();
        let [a, b, c, d, tag @ ..] = call;
        (u32::from_le_bytes([a, b, c, d]), tag)
    }

    /// The dialer's answer.
    fn answers(&self, tag: [u8; 4], stream: Option<&UnixStream>) {
        answer(&self.dialer, tag, stream);
    }

    /// The guest's connection from its `port` to a program of the host's at `to`.
    fn calls(&mut self, port: u32, to: u32) -> UnixStream {
        self.sends(REQUEST, port, to);
        let (called, tag) = self.is_called();
        assert_eq!(called, to);
        let (ours, its) = UnixStream::pair().unwrap();
        its.set_nonblocking(true).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.answers(tag, Some(&its));
        self.receives_op(RESPONSE, port, to);
        ours
    }
}

/// The end of what a program of the host receives.
#[track_caller]
fn is_over(stream: &mut UnixStream) {
    let read = stream.read(&mut [0]);
    let is_reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(matches!(read, Ok(0)) || read.as_ref().is_err_and(is_reset), "{read:?}");
}

#[test]
fn the_host_connects_and_data_goes_both_ways() {
    let mut world = world();
    let cid: Vec<u8> =
        [0, 4].into_iter().flat_map(|at| world.driver.get(0x100 + at).to_le_bytes()).collect();
    assert_eq!(cid, u64::from(CID).to_le_bytes());
    let (mut stream, port) = world.connects(1024);
    stream.write_all(&bytes(10_000)).unwrap();
    let mut received = Vec::new();
    while received.len() < 10_000 {
        let (packet, data) = world.receives();
        assert_eq!((packet.op, packet.src_port), (RW, port));
        received.extend(data);
    }
    assert_eq!(received, bytes(10_000));
    world.sends_data(1024, port, &bytes(5000));
    let mut back = vec![0; 5000];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes(5000));
}

#[test]
fn the_guest_connects_and_is_refused_where_nobody_listens() {
    let mut world = world();
    let mut stream = world.calls(99, 52);
    world.sends_data(99, 52, b"ping");
    let mut ping = [0; 4];
    stream.read_exact(&mut ping).unwrap();
    stream.write_all(b"pong").unwrap();
    let (packet, data) = world.receives();
    assert_eq!((packet.op, packet.dst_port, &data[..]), (RW, 99, &b"pong"[..]));
    world.sends(REQUEST, 100, 53);
    let (_, tag) = world.is_called();
    world.answers(tag, None);
    world.receives_op(RST, 100, 53);
    // The other one goes on.
    world.sends_data(99, 52, b"ping");
    stream.read_exact(&mut ping).unwrap();
}

#[test]
fn the_first_connection_to_a_port_can_lead_to_a_stream_that_is_there() {
    let (mut stream, its) = UnixStream::pair().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"early").unwrap();
    let its = std::cell::Cell::new(Some(its));
    let first = |host: &Host| host.serve_first(52, its.take().unwrap().into()).unwrap();
    let mut world = bare_world_of(device_with(first));
    world.offers();
    // Another port, and then the same one again, are the dialer's.
    let _other = world.calls(98, 53);
    world.sends(REQUEST, 99, 52);
    world.receives_op(RESPONSE, 99, 52);
    assert_eq!(world.receives().1, b"early");
    world.sends_data(99, 52, b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    let _second = world.calls(100, 52);
    // Its end is the guest's, too.
    drop(stream);
    loop {
        let (packet, _) = world.receives();
        assert_eq!((packet.op, packet.dst_port), (SHUTDOWN, 99));
        if packet.flags == NEITHER {
            break;
        }
    }
}

#[test]
fn what_follows_the_first_line_is_for_the_guest() {
    let mut world = world();
    let mut stream = world.asks("CONNECT 7");
    for part in ["7", "\r\nfirst", " second"] {
        world.driver.paused(|_| {});
        stream.write_all(part.as_bytes()).unwrap();
    }
    let (request, _) = world.receives();
    assert_eq!((request.op, request.dst_port), (REQUEST, 77));
    world.is_quiet();
    world.sends(RESPONSE, 77, request.src_port);
    let mut received = Vec::new();
    while received.len() < 12 {
        received.extend(world.receives().1);
    }
    assert_eq!(received, b"first second");
}

#[test]
fn what_asks_for_no_port_or_one_that_is_refused_is_disconnected() {
    let mut world = world();
    let long = "CONNECT 000000000000000000000000000007\n";
    for line in
        ["CONNECT\n", "\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\r\n", "CONNECT -1\n", long]
    {
        is_over(&mut world.asks(line));
    }
    drop(world.asks("CONN"));
    let mut stream = world.asks("CONNECT 9\n");
    let (request, _) = world.receives();
    world.sends(RST, 9, request.src_port);
    is_over(&mut stream);
    world.is_quiet();
}

#[test]
fn a_guest_without_room_is_sent_no_more_and_the_host_waits() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    let small = |forwarded| Packet {
        buf_alloc: 1000,
        fwd_cnt: forwarded,
        ..packet(CREDIT_UPDATE, 1, port)
    };
    world.sends_with(&small(0), &[]);
    stream.write_all(&bytes(2500)).unwrap();
    let mut received = Vec::new();
    for forwarded in [1000, 2000, 2500] {
        while received.len() < forwarded {
            received.extend(world.receives().1);
        }
        assert_eq!(received.len(), forwarded);
        if forwarded < 2500 {
            // It asks for room, and sends nothing before there is some.
            world.receives_op(CREDIT_REQUEST, 1, port);
            world.is_quiet();
            world.sends_with(&small(forwarded as u32), &[]);
        }
    }
    assert_eq!(received, bytes(2500));
}

#[test]
fn a_program_that_does_not_read_stops_the_guest_and_no_other() {
    let mut world = world();
    let (mut slow, port) = world.connects(1);
    let (mut other, other_port) = world.connects(2);
    let all = bytes(4 << 20);
    let (mut sent, mut forwarded) = (0, 0);
    // As much as it may: until no more room is announced.
    while sent - forwarded < 64 << 10 {
        world.sends_data(1, port, &all[sent..sent + 4096]);
        sent += 4096;
        world.driver.paused(|_| {});
        if world.driver.used_index(RECEIVES) != world.next as u16 {
            forwarded = world.receives_op(CREDIT_UPDATE, 1, port).fwd_cnt as usize;
        }
        assert!(sent < all.len(), "the program's socket is never full");
    }
    world.sends_data(2, other_port, b"not held up");
    let mut line = [0; 11];
    other.read_exact(&mut line).unwrap();
    let mut received = vec![0; sent];
    slow.read_exact(&mut received).unwrap();
    assert!(received == all[..sent], "what was kept comes late and whole");
    let mut announced = 0;
    while announced < forwarded + (32 << 10) {
        announced = world.receives_op(CREDIT_UPDATE, 1, port).fwd_cnt as usize;
    }
    world.sends(CREDIT_REQUEST, 1, port);
    assert_eq!(world.receives_op(CREDIT_UPDATE, 1, port).fwd_cnt as usize, sent);
}

#[test]
fn what_comes_waits_for_buffers() {
    let mut world = bare_world();
    let _first = world.asks("CONNECT 1\n");
    let _second = world.asks("CONNECT 2\n");
    world.sends(RW, 8, 9); // refused, once there is room
    world.driver.paused(|driver| assert_eq!(driver.used_index(RECEIVES), 0));
    world.offers();
    world.receives_op(RST, 8, 9);
    let mut asked = [world.receives().0, world.receives().0].map(|packet| packet.dst_port);
    asked.sort_unstable();
    assert_eq!(asked, [1, 2]);
}

#[test]
fn a_driver_learns_that_its_connections_have_ended() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    world.driver.paused(|driver| {
        // A new device with what was saved of this one.
        let end = |device: &mut Vsock| {
            device.reset();
            device.restore(&DeviceSaved::Nothing)
        };
        driver.mmio.transport.change(end).unwrap();
    });
    is_over(&mut stream);
    // The event comes first, and what is new only after it.
    let _new = world.asks("CONNECT 1\n");
    world.is_quiet();
    world.driver.write(DATA + 0x3_0000, &[0xee; 4]);
    world.driver.add(EVENTS, &[(DATA + 0x3_0000, 4, true)]);
    world.driver.kick(EVENTS);
    assert_eq!(world.driver.wait_used(EVENTS).1, 4);
    assert_eq!(world.driver.read(DATA + 0x3_0000, 4), [0; 4]);
    // A driver that still ends its connections would end this one, too: once it gives the buffer back it has.
    world.is_quiet();
    world.driver.add(EVENTS, &[(DATA + 0x3_0000, 4, true)]);
    world.receives_op(REQUEST, 1, 1 << 30);
    world.sends(RW, 1, port + 7);
    world.receives_op(RST, 1, port + 7);
}

#[test]
fn a_reset_ends_all_connections_and_the_next_driver_has_none() {
    let mut world = world();
    let (mut first, _) = world.connects(1);
    let mut second = world.calls(99, 52);
    let mut greeting = world.asks("CONN");
    world.sends(REQUEST, 100, 52);
    let (_, late) = world.is_called();
    world.driver.init();
    for stream in [&mut first, &mut second, &mut greeting] {
        is_over(stream);
    }
    world.offers();
    // An answer to a call of the driver before.
    let (mut ours, its) = UnixStream::pair().unwrap();
    world.answers(late, Some(&its));
    drop(its);
    is_over(&mut ours);
    let mut stream = world.calls(100, 52);
    stream.shutdown(Shutdown::Both).unwrap();
    is_over(&mut stream);
}

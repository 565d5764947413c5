//! A connection between a program of the host and one of the guest: credit (virtio 1.2, 5.10.6.3), and how it ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::host::is_temporary;
use super::packet::*;
use crate::memory::buffers::Buffers;

/// Bytes that the guest may send beyond what the host's socket has taken.
///
/// A socket does not say how much it will take, so the rest is kept here. It could not stay in the driver's queue: that
/// would hold up all other connections.
pub(super) const WINDOW: u32 = 64 << 10;

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest's, until the dialer answers the call with this tag.
    Called(u32),
    /// The host's, until the guest answers.
    #[default]
    Requested,
    Open,
}

/// What becomes of a connection.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Stays,
    /// It ends, and the guest gets an RST.
    Reset,
    /// It ends, and the guest knows.
    Ends,
}

#[derive(Default)]
pub(super) struct Connection {
    ports: Ports,
    pub phase: Phase,
    /// The host's program; `None` until the dialer answers.
    stream: Option<OwnedFd>,
    /// The guest's room, and how much of what it was sent has left that.
    guest_alloc: u32,
    guest_forwarded: u32,
    /// Bytes that were sent to the guest. All counts are modulo 2^32.
    sent: u32,
    /// Bytes that the guest has sent, those of them that have gone on, and as many as the guest knows of.
    received: u32,
    forwarded: u32,
    announced: u32,
    /// What the host's socket has not taken yet: at most a window.
    rest: Vec<u8>,
    /// Packets for the guest: a bit for each operation.
    owes: u16,
    /// Flags of SHUTDOWN: what the host's program does no more, and what the guest's does no more.
    host_ended: u32,
    guest_ended: u32,
}

impl Connection {
    /// One that the guest requests.
    pub fn called(ports: Ports, tag: u32, request: &Packet) -> Self {
        let (guest_alloc, guest_forwarded) = (request.buf_alloc, request.fwd_cnt);
        Self { ports, phase: Phase::Called(tag), guest_alloc, guest_forwarded, ..Self::default() }
    }

    /// One that the host's program requests.
    pub fn requested(ports: Ports, stream: OwnedFd) -> Self {
        Self { ports, stream: Some(stream), owes: 1 << REQUEST, ..Self::default() }
    }

    /// The dialer has connected it.
    pub fn accept(&mut self, stream: OwnedFd) {
        (self.phase, self.stream) = (Phase::Open, Some(stream));
        self.owe(RESPONSE);
    }

    /// Bytes that are kept for the host.
    pub fn held(&self) -> usize {
        self.rest.len()
    }

    fn owe(&mut self, op: u16) {
        self.owes |= 1 << op;
    }

    pub fn owes(&self) -> bool {
        self.owes != 0
    }

    /// Bytes that the guest has room for, by what it says.
    fn credit(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether what the host's program sends can go on to a guest that has buffers.
    fn reads(&self) -> bool {
        let ended = self.host_ended & NO_SEND | self.guest_ended & NO_RECEIVE;
        self.phase == Phase::Open && ended == 0 && self.credit() > 0
    }

    /// The stream, and those of its events that count. `None`: not even its end does, which poll(2) reports in any case.
    pub fn source(&self, has_buffers: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, has_buffers && self.reads());
        flags.set(PollFlags::OUT, !self.rest.is_empty());
        let awaits_end = self.phase == Phase::Requested || self.host_ended == NO_SEND;
        let stream = self.stream.as_ref().filter(|_| awaits_end || !flags.is_empty())?;
        Some((stream.as_fd(), flags))
    }

    /// A header to the guest at `cid`.
    fn header(&mut self, op: u16, cid: u64) -> Packet {
        self.announced = self.forwarded;
        let (flags, fwd_cnt) = (if op == SHUTDOWN { self.host_ended } else { 0 }, self.forwarded);
        let header = Packet::new(op, (HOST_CID, self.ports.host), (cid, self.ports.guest));
        Packet { flags, buf_alloc: WINDOW, fwd_cnt, ..header }
    }

    /// The next packet that it owes to the guest at `cid`, and what becomes of it then.
    pub fn next_owed(&mut self, cid: u64) -> Option<(Packet, Then)> {
        let all = [REQUEST, RESPONSE, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN];
        let op = all.into_iter().find(|op| self.owes & 1 << op != 0)?;
        self.owes &= !(1 << op);
        let is_last = op == SHUTDOWN && self.host_ended == NEITHER;
        Some((self.header(op, cid), if is_last { Then::Ends } else { Then::Stays }))
    }

    /// Reads what the host's program has sent into `room`, after a header to the guest at `cid`, at most `most` bytes;
    /// returns how many, if there are any.
    pub fn read(&mut self, cid: u64, room: &Buffers, most: usize) -> (Then, Option<usize>) {
        let most = most.min(room.len() - HEADER).min(self.credit() as usize);
        let Some(stream) = self.stream.as_ref().filter(|_| self.reads()) else {
            return (Then::Stays, None);
        };
        match room.receive(stream.as_fd(), HEADER..HEADER + most, &mut []) {
            Ok(0) => {
                self.host_ended |= NO_SEND;
                self.owe(SHUTDOWN);
                (Then::Stays, None)
            }
            Ok(len) => {
                self.sent = self.sent.wrapping_add(len as u32);
                let header = Packet { len: len as u32, ..self.header(RW, cid) };
                room.copy_from(&header.bytes());
                if self.credit() == 0 {
                    self.owe(CREDIT_REQUEST);
                }
                (Then::Stays, Some(len))
            }
            Err(error) if is_temporary(&error) => (Then::Stays, None),
            Err(_) => (Then::Reset, None),
        }
    }

    /// Takes a packet of the guest's, with its data.
    pub fn receive(&mut self, packet: &Packet, data: Buffers) -> Then {
        (self.guest_alloc, self.guest_forwarded) = (packet.buf_alloc, packet.fwd_cnt);
        match (self.phase, packet.op) {
            (_, RST) => return Then::Ends,
            (Phase::Requested, RESPONSE) => {
                self.phase = Phase::Open;
                let line = format!("OK {}\n", self.ports.host);
                let is_sent = self.send(line.as_bytes()).is_ok_and(|count| count == line.len());
                return if is_sent { Then::Stays } else { Then::Reset };
            }
            (Phase::Open, RW) => return self.take(packet.len, data),
            (Phase::Open, CREDIT_UPDATE) => {}
            (Phase::Open, CREDIT_REQUEST) => self.owe(CREDIT_UPDATE),
            (Phase::Open, SHUTDOWN) => {
                self.guest_ended |= packet.flags & NEITHER;
                if self.guest_ended & NO_RECEIVE != 0 {
                    self.shut(Shutdown::Read);
                }
                return self.end_sending();
            }
            _ => return Then::Reset,
        }
        Then::Stays
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(stream) = &self.stream else { return Ok(0) };
        Ok(send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    /// Passes `len` bytes of `data` on to the host.
    fn take(&mut self, len: u32, mut data: Buffers) -> Then {
        let on_its_way = self.received.wrapping_sub(self.forwarded);
        let is_too_much = len > WINDOW.saturating_sub(on_its_way) || len as usize > data.len();
        if is_too_much || self.guest_ended & NO_SEND != 0 {
            return Then::Reset;
        }
        self.received = self.received.wrapping_add(len);
        let mut data = data.take(len as usize);
        if self.rest.is_empty()
            && self.host_ended & NO_RECEIVE == 0
            && let Some(stream) = &self.stream
        {
            match data.send_some(stream.as_fd()) {
                Ok(count) => self.forward(data.take(count).len()),
                Err(error) if is_temporary(&error) => {}
                Err(_) => self.end_receiving(),
            }
        }
        if self.host_ended & NO_RECEIVE != 0 {
            self.forward(data.len()); // nobody receives it
            return Then::Stays;
        }
        let held = self.rest.len();
        self.rest.resize(held + data.len(), 0);
        data.copy_to(&mut self.rest[held..]);
        Then::Stays
    }

    /// `count` bytes have left the guest's window; it is owed that before it waits for it.
    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.forwarded.wrapping_sub(self.announced) >= WINDOW / 2 {
            self.owe(CREDIT_UPDATE);
        }
    }

    /// The host's program receives no more.
    fn end_receiving(&mut self) {
        self.forward(self.rest.len());
        self.rest = Vec::new();
        self.host_ended |= NO_RECEIVE;
        self.owe(SHUTDOWN);
    }

    /// The guest's program may have ended one direction or both; what it has sent comes first.
    fn end_sending(&self) -> Then {
        if self.rest.is_empty() && self.guest_ended & NO_SEND != 0 {
            if self.guest_ended == NEITHER {
                return Then::Reset; // the answer that ends a connection (5.10.6.5)
            }
            self.shut(Shutdown::Write);
        }
        Then::Stays
    }

    fn shut(&self, how: Shutdown) {
        // Fails where the other end is gone.
        let _ = self.stream.as_ref().map(|stream| shutdown(stream, how));
    }

    /// The stream may be written to, or its other end is gone.
    pub fn ready(&mut self) -> Then {
        if self.phase == Phase::Requested {
            return if self.is_cut() { Then::Reset } else { Then::Stays };
        }
        if self.rest.is_empty() {
            if self.host_ended == NO_SEND && self.is_cut() {
                self.end_receiving();
            }
            return Then::Stays;
        }
        match self.send(&self.rest) {
            Ok(count) => {
                self.rest.drain(..count);
                self.rest.shrink_to_fit();
                self.forward(count);
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.end_receiving(),
        }
        self.end_sending()
    }

    /// Whether the host's program has closed its end.
    fn is_cut(&self) -> bool {
        let stream = self.stream.iter();
        let mut end: Vec<_> = stream.map(|end| PollFd::new(end, PollFlags::empty())).collect();
        poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
    }
}

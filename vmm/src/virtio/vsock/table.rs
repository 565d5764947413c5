//! All connections of a vsock device, and the packets that the guest is owed.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use vmm_sys_util::metric::Metric;

use super::connection::{Connection, Phase, Ports, Then};
use super::host::{Greeting, Host};
use super::packet::*;
use crate::memory::buffers::Buffers;
use crate::virtio::queue::{Chain, Served};
use crate::virtio::vsock_counts::VsockCounts;

/// Most connections; one more is refused.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// Refusals that wait for the guest's buffers. Its queue waits when there are so many.
const MAX_REFUSALS: usize = 256;
/// Most bytes that are kept for programs of the host that do not read. The connection that has more is reset.
const MAX_HELD: usize = 16 << 20;
/// The host's ports of connections to the guest: those from here on are nobody's.
const FIRST_PORT: u32 = 1 << 30;
/// Bytes that are read of a stream before others have their turn.
const SHARE: usize = 64 << 10;

/// A descriptor of the device's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    Dialer,
    Listener,
    Greeting(usize),
    Stream(Ports),
}

/// A stream that can be read, and how much of it is read before others have their turn.
pub(super) type Ready = (Ports, usize);

#[derive(Default)]
pub(super) struct Table {
    cid: u64,
    connections: BTreeMap<Ports, Connection>,
    /// RST packets for connections that there are not.
    refusals: VecDeque<Packet>,
    greetings: Vec<Greeting>,
    /// The next of the host's ports, from the first one on.
    next_port: u32,
    pub counts: Arc<VsockCounts>,
}

impl Table {
    /// That of a guest with the address `cid`.
    pub fn new(cid: u32, counts: Arc<VsockCounts>) -> Self {
        Self { cid: cid.into(), counts, ..Self::default() }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.greetings.len() >= MAX_CONNECTIONS
    }

    /// Whether the guest has to take what it is owed before it sends more.
    pub fn owes_too_much(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    /// Its descriptors, in an order that stays until something changes.
    pub fn sources(
        &self,
        has_buffers: bool,
    ) -> impl Iterator<Item = (Source, (BorrowedFd<'_>, PollFlags))> {
        let greetings = self.greetings.iter().enumerate();
        let greetings = greetings.map(|(index, greeting)| {
            (Source::Greeting(index), (greeting.stream.as_fd(), PollFlags::IN))
        });
        greetings.chain(self.connections.iter().filter_map(move |(ports, connection)| {
            Some((Source::Stream(*ports), connection.source(has_buffers)?))
        }))
    }

    /// A program of the host has connected. One too many is disconnected.
    pub fn greet(&mut self, stream: OwnedFd) {
        if !self.is_full() {
            self.greetings.push(Greeting::new(stream));
        }
    }

    /// Reads on what a program of the host wants.
    pub fn listen(&mut self, index: usize) {
        match self.greetings[index].read() {
            Ok(None) => {}
            Ok(Some(guest)) => {
                let stream = self.greetings.swap_remove(index).stream;
                let ports = self.free_ports(guest);
                self.add(ports, Connection::requested(ports, stream));
            }
            Err(_) => drop(self.greetings.swap_remove(index)),
        }
    }

    /// A port of the host that has no connection to `guest`.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: FIRST_PORT | self.next_port, guest };
            self.next_port = (self.next_port + 1) % FIRST_PORT;
            if !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// The dialer's `answer` has come: a tag, and a stream. `None`: no more will.
    pub fn answered(&mut self, answer: Option<(u32, Option<OwnedFd>)>) {
        let (tag, mut stream) = answer.map_or((None, None), |(tag, stream)| (Some(tag), stream));
        let waits = |connection: &Connection| match connection.phase {
            Phase::Called(own) => tag.is_none_or(|tag| tag == own),
            _ => false,
        };
        let called = self.connections.iter().filter(|(_, connection)| waits(connection));
        for ports in called.map(|(ports, _)| *ports).collect::<Vec<_>>() {
            match (self.connections.get_mut(&ports), stream.take()) {
                (Some(connection), Some(stream)) => connection.accept(stream),
                _ => self.conclude(ports, Then::Reset),
            }
        }
    }

    /// Takes a packet of the guest's.
    pub fn receive(&mut self, packet: &Packet, data: Buffers, host: &Host) {
        // Nobody could be answered there.
        if packet.src_cid != self.cid {
            return;
        }
        self.counts.tx_packets.inc();
        self.counts.tx_bytes.add(data.len() as u64);
        let ports = Ports { host: packet.dst_port, guest: packet.src_port };
        let is_ours = packet.kind == STREAM && packet.dst_cid == HOST_CID;
        let may_request = is_ours && packet.op == REQUEST && !self.is_full();
        if let Some(connection) = self.connections.get_mut(&ports).filter(|_| is_ours) {
            let mut then = connection.receive(packet, data);
            if connection.held() > 0 && self.held() > MAX_HELD {
                then = Then::Reset;
            }
            self.conclude(ports, then);
        } else if may_request && let Some(stream) = host.first(ports.host) {
            let mut connection = Connection::called(ports, 0, packet);
            connection.accept(stream);
            self.add(ports, connection);
        } else if may_request && let Ok(tag) = host.call(ports.host) {
            self.add(ports, Connection::called(ports, tag, packet));
        } else if packet.op != RST {
            self.refusals.push_back(packet.refusal());
        }
    }

    fn add(&mut self, ports: Ports, connection: Connection) {
        self.counts.added.inc();
        self.connections.insert(ports, connection);
    }

    fn held(&self) -> usize {
        self.connections.values().map(Connection::held).sum()
    }

    /// The stream is ready: it may be written to, and read on.
    pub fn ready(&mut self, ports: Ports) -> Ready {
        if let Some(connection) = self.connections.get_mut(&ports) {
            let then = connection.ready();
            self.conclude(ports, then);
        }
        (ports, SHARE)
    }

    fn conclude(&mut self, ports: Ports, then: Then) {
        if then == Then::Stays {
            return;
        }
        let Some(connection) = self.connections.remove(&ports) else { return };
        self.counts.removed.inc();
        // The guest need not know of one that it was never asked for.
        let is_known = connection.phase != Phase::Requested || !connection.owes();
        if then == Then::Reset && is_known {
            let (from, to) = ((HOST_CID, ports.host), (self.cid, ports.guest));
            self.refusals.push_back(Packet::new(RST, from, to));
        }
    }

    /// The next packet without data.
    fn next_packet(&mut self) -> Option<Packet> {
        if let Some(packet) = self.refusals.pop_front() {
            return Some(packet);
        }
        // There are a thousand at most, and poll(2) has looked at all of them.
        let (ports, connection) = self.connections.iter_mut().find(|(_, one)| one.owes())?;
        let (ports, (packet, then)) = (*ports, connection.next_owed(self.cid)?);
        self.conclude(ports, then);
        Some(packet)
    }

    /// Fills a buffer of the guest's with the next packet: with what is owed, or with what can be read of `ready`.
    pub fn fill(&mut self, chain: &Chain, ready: &mut Option<Ready>) -> Served {
        let room = &chain.writable;
        if room.len() <= HEADER {
            return Served::Done(0); // too small for anything
        }
        loop {
            if let Some(packet) = self.next_packet() {
                self.counts.rx_packets.inc();
                return Served::Done(room.copy_from(&packet.bytes()) as u32);
            }
            let Some((ports, left)) = ready.take().filter(|(_, left)| *left > 0) else {
                return Served::Stays;
            };
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            let (then, read) = connection.read(self.cid, room, left);
            self.conclude(ports, then);
            if let Some(len) = read {
                self.counts.rx_packets.inc();
                self.counts.rx_bytes.add(len as u64);
                *ready = Some((ports, left - len));
                return Served::Done((HEADER + len) as u32);
            }
        }
    }
}

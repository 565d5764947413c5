//! What plays the process that serves a device: it changes the case of letters.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// What it does once it is to serve a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Works,
    Ends,
    /// It reads on, and answers nothing.
    Hangs,
    /// It answers with something else.
    Babbles,
}

/// The thread that plays.
pub struct Player(JoinHandle<()>);

impl Player {
    pub fn start(socket: UnixStream, manner: Manner) -> Self {
        Self(thread::spawn(move || Process { socket, manner, ..Process::new() }.run()))
    }

    /// Waits for its end, which follows that of the connection.
    pub fn ends(self) {
        self.0.join().unwrap();
    }
}

#[derive(Default)]
struct Ring {
    queue: Option<Queue>,
    size: u32,
    next: u32,
    places: [u64; 3],
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
}

struct Process {
    socket: UnixStream,
    manner: Manner,
    rings: [Ring; 2],
    memory: Option<GuestMemoryMmap>,
    /// Guest address, length and address in the other process, of each region.
    table: Vec<[u64; 3]>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Process {
    fn new() -> Self {
        let (socket, _) = UnixStream::pair().unwrap();
        let (rings, memory, table) = Default::default();
        Self { socket, manner: Manner::Works, rings, memory, table }
    }

    fn run(mut self) {
        while self.wait() {
            let Some((request, payload, files)) = self.receive() else { return };
            let starts = request == 18 && self.manner != Manner::Works;
            if starts && self.manner == Manner::Ends {
                return;
            }
            self.answer(request, &payload, files);
        }
    }

    /// Serves queues until there is a message; false at the end.
    fn wait(&mut self) -> bool {
        loop {
            let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
            let served: Vec<usize> = (0..2)
                .filter(|at| self.rings[*at].enabled && self.rings[*at].kick.is_some())
                .collect();
            let kicks = served.iter().filter_map(|at| self.rings[*at].kick.as_ref());
            fds.extend(kicks.map(|kick| PollFd::new(kick, PollFlags::IN)));
            poll(&mut fds, None).unwrap();
            let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return true;
            }
            for (at, _) in served.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
                self.serve(*at);
            }
        }
    }

    fn serve(&mut self, at: usize) {
        let ring = &mut self.rings[at];
        let _ = rustix::io::read(ring.kick.as_ref().unwrap(), &mut [0; 8]);
        if self.manner != Manner::Works {
            return;
        }
        let (queue, memory) = (ring.queue.as_mut().unwrap(), self.memory.as_ref().unwrap());
        loop {
            let Some(chain) = queue.iter(memory).unwrap().next() else { return };
            let (head, mut text, mut written) = (chain.head_index(), Vec::new(), 0);
            for descriptor in chain {
                if descriptor.is_write_only() {
                    let part = &text[..text.len().min(descriptor.len() as usize)];
                    memory.write_slice(part, descriptor.addr()).unwrap();
                    written += part.len();
                } else {
                    text.resize(descriptor.len() as usize, 0);
                    memory.read_slice(&mut text, descriptor.addr()).unwrap();
                    text.iter_mut().filter(|c| c.is_ascii_alphabetic()).for_each(|c| *c ^= 0x20);
                }
            }
            queue.add_used(memory, head, written as u32).unwrap();
            rustix::io::write(ring.call.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// A message: what it requests, its payload and its files.
    fn receive(&mut self) -> Option<(u32, Vec<u8>, Vec<OwnedFd>)> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = &mut [IoSliceMut::new(&mut header)];
        let got = recvmsg(&self.socket, room, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        if got.bytes < 12 {
            return None;
        }
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                files.extend(sent);
            }
        }
        let mut payload = vec![0; word(&header, 8) as usize];
        self.socket.read_exact(&mut payload).ok()?;
        Some((word(&header, 0), payload, files))
    }

    fn reply(&mut self, request: u32, payload: &[u8]) {
        let message = [request, 5, payload.len() as u32].map(u32::to_le_bytes);
        // The other side may be gone.
        let _ = self.socket.write_all(&[message.as_flattened(), payload].concat());
    }

    fn answer(&mut self, request: u32, payload: &[u8], mut files: Vec<OwnedFd>) {
        let at = if payload.is_empty() { 0 } else { payload[0] as usize & 1 };
        match request {
            1 => self.reply(1, &(1u64 << 32 | 1 << 30 | 3 << 28 | 0xff_ffff).to_le_bytes()),
            15 => self.reply(15, &(1u64 << 9).to_le_bytes()),
            24 => {
                let config: Vec<u8> = (0..60).collect();
                self.reply(24, &[&payload[..12], &config].concat());
            }
            5 => self.map(payload, files),
            8 => self.rings[at].size = word(payload, 4),
            9 => self.rings[at].places = [8, 16, 24].map(|place| number(payload, place)),
            10 => self.rings[at].next = word(payload, 4),
            11 if self.manner == Manner::Hangs => {}
            11 if self.manner == Manner::Babbles => self.reply(11, &[0xff; 8]),
            11 => {
                let ring = std::mem::take(&mut self.rings[at]);
                let next = ring.queue.map_or(0, |queue| queue.next_avail());
                self.reply(11, &[at as u32, next.into()].map(u32::to_le_bytes).concat());
            }
            12 => self.rings[at].kick = files.pop(),
            13 => self.rings[at].call = files.pop(),
            18 => self.begin(at),
            _ => {}
        }
    }

    fn map(&mut self, payload: &[u8], files: Vec<OwnedFd>) {
        let region = |at: usize| [8, 16, 24].map(|place| number(payload, 32 * at + place));
        self.table = (0..files.len()).map(region).collect();
        let range = |([start, len, _], file): (&[u64; 3], OwnedFd)| {
            let file = FileOffset::new(File::from(file), 0);
            (GuestAddress(*start), *len as usize, Some(file))
        };
        let ranges: Vec<_> = self.table.iter().zip(files).map(range).collect();
        self.memory = Some(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap());
    }

    fn begin(&mut self, at: usize) {
        let table = &self.table;
        let guest = |place: u64| {
            let mut regions = table.iter();
            let region = regions.find(|[_, len, host]| (*host..*host + *len).contains(&place));
            let [start, _, host] = region.unwrap();
            GuestAddress(start + (place - host))
        };
        let ring = &mut self.rings[at];
        let mut queue = Queue::new(ring.size as u16).unwrap();
        let [descriptors, used, available] = ring.places.map(guest);
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.try_set_avail_ring_address(available).unwrap();
        queue.set_next_avail(ring.next as u16);
        queue.set_next_used(ring.next as u16);
        queue.set_ready(true);
        ring.queue = Some(queue);
        ring.enabled = true;
        assert!(ring.kick.as_ref().is_some_and(|kick| kick.as_fd().try_clone_to_owned().is_ok()));
    }
}

/// Sends `answers`, perhaps after headers of messages.
pub fn babble(mut socket: &UnixStream, answers: &[Vec<u8>], like_header: bool) {
    for (request, answer) in [1u32, 15, 24, 11, 11].into_iter().zip(answers) {
        let header = [request, 5, answer.len() as u32].map(u32::to_le_bytes);
        let header = if like_header { header.as_flattened() } else { &[] };
        // The other side may have hung up.
        let _ = socket.write_all(&[header, answer].concat());
    }
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

//! virtio-net on a wire: one queue each way, no control queue (virtio 1.2, 5.1).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use rustix::event::PollFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;
use vmm_sys_util::metric::Metric;

use super::net_counts::NetCounts;
use super::net_room::Room;
use super::queue::{Chain, Interrupt, Served, Turn, Virtqueue};
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::config::Mac;
use crate::rate::{Gate, Limiter};
use crate::wire::{CHECKSUMS, HEADER, MIN_FRAME, SEGMENTS4, SEGMENTS6, Wire};
use crate::worker::ThreadKind;

const QUEUE_SIZE: u16 = 256;
const RECEIVES: usize = 0;
const SENDS: usize = 1;
/// Bytes of a packet that every card takes, and what a frame adds: addresses, type and a VLAN's tag.
const ETHERNET: (usize, usize) = (1500, 18);

/// A network card.
pub struct Net {
    wire: Wire,
    name: String,
    space: Arc<Space>,
    /// What the driver has accepted.
    features: u64,
    interrupt: Option<Arc<Interrupt>>,
    room: Room,
    /// The driver has no more buffers, and kicks when it has.
    lacks_room: bool,
    /// A frame waits until the wire takes it.
    is_full: bool,
    /// The limit lets no frame in for now.
    is_limited: bool,
    /// The tap does not know yet what the driver takes.
    sets_offload: bool,
    counts: Arc<NetCounts>,
    /// The limits of frames, and their bytes, that the driver receives.
    pub rx: Gate,
    /// Those of what it sends.
    pub tx: Gate,
}

/// The configuration space: `struct virtio_net_config` (5.1.4).
struct Space {
    mac: Mac,
    mtu: Option<u16>,
    is_up: AtomicBool,
}

impl ConfigSpace for Space {
    fn read(&self) -> Vec<u8> {
        let status = u16::from(self.is_up.load(Ordering::SeqCst)); // VIRTIO_NET_S_LINK_UP
        let pairs = 1u16; // of queues; not offered
        let words = [status, pairs, self.mtu.unwrap_or(0)];
        self.mac.0.into_iter().chain(words.into_iter().flat_map(u16::to_le_bytes)).collect()
    }
}

impl Net {
    /// The `index`-th card, at the end of `wire`.
    pub fn new(wire: Wire, index: usize, mac: Mac, mtu: Option<u16>) -> Self {
        wire.abandon();
        let space = Space { mac, mtu, is_up: AtomicBool::new(!wire.is_lost()) };
        Self {
            wire,
            name: format!("net{index}"),
            space: Arc::new(space),
            features: 0,
            interrupt: None,
            room: Room::default(),
            lacks_room: false,
            is_full: false,
            is_limited: false,
            sets_offload: false,
            counts: Arc::default(),
            rx: Gate::default(),
            tx: Gate::default(),
        }
    }

    /// The counters of frames.
    pub fn counts(&self) -> &Arc<NetCounts> {
        &self.counts
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    fn is_up(&self) -> bool {
        self.space.is_up.load(Ordering::SeqCst)
    }

    /// The other end is gone: what is sent from now on is lost.
    fn cut(&mut self, why: &io::Error) {
        log::warn!(
            "{}: what it is connected to is gone ({why}): the guest's link is down",
            self.name
        );
        self.wire.lose();
        self.space.is_up.store(false, Ordering::SeqCst);
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed();
        }
    }

    /// The bytes of the largest frame that may come, with its header, where the wire does not say.
    fn largest(&self) -> usize {
        let (packet, around) = ETHERNET;
        match self.has(net::VIRTIO_NET_F_GUEST_TSO4) || self.has(net::VIRTIO_NET_F_GUEST_TSO6) {
            true => HEADER + self.wire.max_frame(),
            false => HEADER + around + packet.max(self.space.mtu.unwrap_or(0).into()),
        }
    }

    /// Receives frames until there is none, or no room for one, or the turn is over.
    fn receive(&mut self, queues: &mut [Virtqueue]) -> Result<()> {
        if self.sets_offload {
            self.set_offload();
        }
        let turn = Turn::begin();
        let mut received = Ok(true);
        while matches!(received, Ok(true)) && !turn.is_over() {
            received = self.receive_one(&mut queues[RECEIVES], &turn);
        }
        // A frame that has begun to come waits for nobody but us: one interrupt is for it and those before it.
        let waits = self.is_up() && !self.lacks_room && !self.is_limited && !turn.is_over();
        let is_amid = waits && received.is_ok() && self.wire.is_amid();
        if !is_amid {
            queues[RECEIVES].interrupt()?;
        }
        received.map(drop)
    }

    /// Receives a frame; returns whether there may be another.
    fn receive_one(&mut self, queue: &mut Virtqueue, turn: &Turn) -> Result<bool> {
        let known = match self.wire.next() {
            Ok(len) => len,
            Err(error) => return Ok(self.fails(&error)),
        };
        let size = known.map_or_else(|| self.largest(), |len| HEADER + len);
        let Some(room) = self.find_room(queue, turn, size)? else { return Ok(false) };
        if room < size && known.is_some() {
            self.wire.skip();
            self.counts.rx_dropped.inc();
            return Ok(true);
        }
        if !self.rx.admits(known.unwrap_or(0)) {
            self.is_limited = true;
            self.counts.rx_throttled.inc();
            return Ok(false);
        }
        let Some(held) = &self.room.buffers else { return Ok(false) };
        let most = room.min(size);
        match self.wire.receive(held.buffers(), most) {
            Err(error) => return Ok(self.fails(&error)),
            Ok(len) => {
                self.rx.close(if known.is_none() { len - HEADER } else { 0 });
                match len > most {
                    true => self.counts.rx_dropped.inc(),
                    false => self.deliver(queue, len, known.is_none())?,
                }
            }
        }
        Ok(true)
    }

    /// The wire has not given a frame; returns false, for there is no other one.
    fn fails(&mut self, error: &io::Error) -> bool {
        if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
            self.cut(error);
        }
        false
    }

    /// Takes buffers of the driver's for a frame of `size` bytes; returns the bytes of those that it may use. `None`:
    /// the driver has to give more first.
    fn find_room(
        &mut self,
        queue: &mut Virtqueue,
        turn: &Turn,
        size: usize,
    ) -> Result<Option<usize>> {
        let merges = self.has(net::VIRTIO_NET_F_MRG_RXBUF);
        let enough =
            |room: &Room| if merges { room.len() >= size } else { !room.chains.is_empty() };
        let room = &mut self.room;
        while !enough(room) {
            let left = queue.serve_available(turn, |chain| {
                if enough(room) {
                    return Ok(Served::Stays);
                }
                room.add(chain)?;
                Ok(Served::InFlight)
            })?;
            if !enough(room) && queue.ends(left)? {
                self.lacks_room = true;
                return Ok(None);
            }
        }
        let first = room.chains.front().map_or(0, |(_, len)| *len);
        Ok(Some(if merges { room.len() } else { first }))
    }

    /// Completes the buffers that a frame of `len` bytes with its header is in. The wire has written the header itself
    /// if it is `complete`, but for the number of buffers.
    fn deliver(&mut self, queue: &mut Virtqueue, len: usize, complete: bool) -> Result<()> {
        let Some(held) = &self.room.buffers else { return Ok(()) };
        let mut header = [0; HEADER];
        if complete {
            held.buffers().copy_to(&mut header);
        } else if self.has(net::VIRTIO_NET_F_GUEST_CSUM) {
            header[0] = net::VIRTIO_NET_HDR_F_DATA_VALID as u8;
        }
        header[10..].copy_from_slice(&self.room.chains_of(len).to_le_bytes());
        held.buffers().copy_from(&header);
        let chains = self.room.take(len);
        self.counts.rx_frames.inc();
        self.counts.rx_bytes.add((len - HEADER) as u64);
        queue.complete_together(&chains)
    }

    /// Sends what the driver has, until the wire takes no more.
    fn send(&mut self, queues: &mut [Virtqueue]) -> Result<()> {
        self.is_full = false;
        let served = queues[SENDS].serve_some(|chain| self.send_one(chain));
        // The frame that its interrupt may wait for does not come.
        if self.is_up() { served } else { queues[RECEIVES].interrupt().and(served) }
    }

    fn send_one(&mut self, chain: &mut Chain) -> Result<Served> {
        let len = chain.readable.len().saturating_sub(HEADER);
        if !self.wire.is_tap() {
            chain.readable.take(HEADER);
        }
        if !self.is_up() || !(MIN_FRAME..=self.wire.max_frame()).contains(&len) {
            self.counts.tx_dropped.inc();
            return Ok(Served::Done(0));
        }
        if !self.tx.admits(len) {
            self.counts.tx_throttled.inc();
            return Ok(Served::Stays);
        }
        match self.wire.send(&chain.readable) {
            Ok(()) => {
                self.counts.tx_frames.inc();
                self.counts.tx_bytes.add(len as u64);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                self.is_full = true;
                return Ok(Served::Stays);
            }
            Err(error) => {
                self.counts.tx_dropped.inc();
                // A tap refuses a frame for what is in it, or while the host has it down.
                if !self.wire.is_tap() {
                    self.cut(&error);
                }
            }
        }
        self.tx.close(0);
        Ok(Served::Done(0))
    }

    fn set_offload(&mut self) {
        self.sets_offload = false;
        let takes = [
            (net::VIRTIO_NET_F_GUEST_CSUM, CHECKSUMS),
            (net::VIRTIO_NET_F_GUEST_TSO4, SEGMENTS4),
            (net::VIRTIO_NET_F_GUEST_TSO6, SEGMENTS6),
        ];
        let takes = takes.into_iter().filter(|(feature, _)| self.has(*feature));
        let what = takes.fold(0, |all, (_, one)| all | one);
        if let Err(error) = self.wire.set_offload(what) {
            self.cut(&error);
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::Network
    }

    fn features(&self) -> u64 {
        let mut features = 1 << net::VIRTIO_NET_F_MAC
            | 1 << net::VIRTIO_NET_F_STATUS
            | 1 << net::VIRTIO_NET_F_MRG_RXBUF
            // A stream's other end checks no sums and takes segments as they are, as a host does of a tap.
            | 1 << net::VIRTIO_NET_F_CSUM
            | 1 << net::VIRTIO_NET_F_GUEST_CSUM
            | 1 << net::VIRTIO_NET_F_HOST_TSO4
            | 1 << net::VIRTIO_NET_F_HOST_TSO6;
        if self.wire.is_tap() {
            features |= 1 << net::VIRTIO_NET_F_GUEST_TSO4 | 1 << net::VIRTIO_NET_F_GUEST_TSO6;
        }
        if self.space.mtu.is_some() {
            features |= 1 << net::VIRTIO_NET_F_MTU;
        }
        features
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.space.clone()
    }

    fn activate(&mut self, driver: &Driver) {
        self.features = driver.features;
        self.interrupt = Some(driver.interrupt.clone());
        self.sets_offload = self.wire.is_tap();
    }

    fn reset(&mut self) {
        self.wire.abandon();
        self.interrupt = None;
        (self.lacks_room, self.is_full) = (false, false);
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        match index {
            SENDS => self.send(queues),
            _ => {
                (self.lacks_room, self.is_limited) = (false, false);
                if self.is_up() { self.receive(queues) } else { Ok(()) }
            }
        }
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        if !self.is_up() {
            return Vec::new();
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.lacks_room && !self.is_limited);
        flags.set(PollFlags::OUT, self.is_full);
        vec![(self.wire.as_fd(), flags)]
    }

    fn descriptor_ready(&mut self, _index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        if self.is_full {
            self.send(queues)?;
        }
        if !self.lacks_room && !self.is_limited {
            return self.receive(queues);
        }
        if !self.is_full && self.wire.is_cut() {
            self.cut(&ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn settle(&mut self, queues: &mut [Virtqueue], _until: Instant) -> bool {
        // Cannot fail but for a ring that leaves RAM, of which the next request tells.
        let _ = queues[RECEIVES].interrupt();
        queues[RECEIVES].give_back(self.room.chains.len());
        self.room = Room::default();
        true
    }

    fn resume_at(&mut self) -> Option<Instant> {
        let limiters = [&mut self.rx, &mut self.tx].into_iter().flat_map(|gate| &mut gate.limiter);
        limiters.filter_map(Limiter::resume_at).min()
    }
}

//! virtio-vsock: stream sockets between programs of the guest and of the host (virtio 1.2, 5.10).
//!
//! The host's side is Unix sockets, as in Firecracker (its docs/vsock.md): a program connects to one socket and says which
//! port of the guest's it wants; the guest's connections arrive at sockets that are named by their port.

mod connection;
pub mod host;
pub(super) mod packet;
mod table;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::PollFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::host::{Host, is_temporary};
use self::packet::{HEADER, Packet};
use self::table::{Ready, Source, Table};
use super::queue::{Left, Served, Turn, Virtqueue};
use super::saved::DeviceSaved;
use super::vsock_counts::VsockCounts;
use super::{ConfigSpace, VirtioDevice};
use crate::worker::ThreadKind;

const QUEUE_SIZE: u16 = 128;
const RECEIVES: usize = 0;
const SENDS: usize = 1;
const EVENTS: usize = 2;
/// VIRTIO_VSOCK_F_STREAM (5.10.3).
const STREAMS: u64 = 1 << 0;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// How long a driver that was told so may take to end its connections.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);
/// How long nobody is accepted after the host had no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// A vsock device. Nothing of its state is saved: a driver that goes on in another process learns that its connections have
/// ended.
pub struct Vsock {
    cid: u32,
    host: Host,
    table: Table,
    /// The driver has no more buffers, and kicks when it has.
    lacks_room: bool,
    /// The driver's packets wait until it has taken some of what it is owed.
    sends_wait: bool,
    /// The driver does not know yet that all connections have ended.
    owes_event: bool,
    /// It is told. For so long, or until more buffers for events are there than these, it may end new connections, too:
    /// Linux gives one back when it has acted on its event (virtio_transport_event_work, net/vmw_vsock).
    ends_until: Option<(Instant, u16)>,
    /// When programs are accepted again.
    accepts_at: Option<Instant>,
    has_dialer: bool,
}

impl Vsock {
    /// The device of a guest with the address `cid`.
    pub fn new(cid: u32, host: Host) -> Self {
        Self {
            cid,
            host,
            table: Table::new(cid, Arc::default()),
            lacks_room: false,
            sends_wait: false,
            owes_event: false,
            ends_until: None,
            accepts_at: None,
            has_dialer: true,
        }
    }

    /// The counters of packets and connections.
    pub fn counts(&self) -> &Arc<VsockCounts> {
        &self.table.counts
    }

    /// Takes the driver's packets.
    fn receive(&mut self, queue: &mut Virtqueue) -> Result<()> {
        self.sends_wait = false;
        let Self { table, host, sends_wait, .. } = self;
        queue.serve_some(|chain| {
            if table.owes_too_much() {
                *sends_wait = true;
                return Ok(Served::Stays);
            }
            if let Some(header) = chain.readable.read_array::<HEADER>() {
                let data = std::mem::take(&mut chain.readable);
                table.receive(&Packet::parse(header), data, host);
            }
            Ok(Served::Done(0))
        })
    }

    /// Gives the driver what it is owed, and what can be read of `ready`.
    fn deliver(&mut self, queues: &mut [Virtqueue], mut ready: Option<Ready>) -> Result<()> {
        // What comes before the event would be for connections that the driver believes in.
        self.owes_event &= queues[EVENTS].is_ready();
        if let Some((until, buffers)) = self.ends_until
            && (until <= Instant::now() || queues[EVENTS].waiting()? > buffers)
        {
            self.ends_until = None;
        }
        if !self.has_buffers() {
            return Ok(());
        }
        let (turn, queue, table) = (Turn::begin(), &mut queues[RECEIVES], &mut self.table);
        loop {
            let left = queue.serve_available(&turn, |chain| Ok(table.fill(chain, &mut ready)));
            queue.interrupt()?;
            let left = left?;
            let is_empty = matches!(left, Left::Nothing) || !queue.is_ready();
            if queue.ends(left)? {
                self.lacks_room = is_empty;
                break;
            }
        }
        match self.sends_wait && !table.owes_too_much() {
            true => queues[SENDS].kick(),
            false => Ok(()),
        }
    }

    /// Whether the driver takes packets.
    fn has_buffers(&self) -> bool {
        !self.lacks_room && !self.owes_event && self.ends_until.is_none()
    }

    fn send_event(&mut self, queue: &mut Virtqueue) -> Result<()> {
        let owed = self.owes_event;
        let owes = &mut self.owes_event;
        queue.serve_some(|chain| {
            Ok(match std::mem::take(owes) {
                true => Served::Done(chain.writable.copy_from(&TRANSPORT_RESET) as u32),
                false => Served::Stays,
            })
        })?;
        if owed && !self.owes_event {
            self.ends_until = Some((Instant::now() + PATIENCE, queue.waiting()?));
        }
        Ok(())
    }

    fn accept(&mut self) {
        match self.host.accept() {
            Ok(stream) => self.table.greet(stream),
            Err(error) if is_temporary(&error) => {}
            // Out of descriptors or memory: the socket stays readable.
            Err(_) => self.accepts_at = Some(Instant::now() + PAUSE),
        }
    }

    fn take_answer(&mut self) {
        match self.host.answer() {
            Ok(answer) => self.table.answered(Some(answer)),
            Err(error) if is_temporary(&error) => {}
            Err(_) => {
                // Once: each life of a guest finds it so.
                static LOGGED: Once = Once::new();
                LOGGED.call_once(|| {
                    log::warn!(
                        "vsock: the guest cannot connect to the host any more: the dialer is gone"
                    )
                });
                self.has_dialer = false;
                self.table.answered(None);
            }
        }
    }

    /// All descriptors, in an order that stays until something changes.
    fn sources(&self) -> impl Iterator<Item = (Source, (BorrowedFd<'_>, PollFlags))> {
        let dialer = self.host.dialer.as_ref().filter(|_| self.has_dialer);
        let dialer = dialer.map(|end| (Source::Dialer, (end.as_fd(), PollFlags::IN)));
        let listener = self.host.listener.as_ref().filter(|_| self.accepts_at.is_none());
        let listener = listener.map(|end| (Source::Listener, (end.as_fd(), PollFlags::IN)));
        dialer.into_iter().chain(listener).chain(self.table.sources(self.has_buffers()))
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::Vsock
    }

    fn features(&self) -> u64 {
        STREAMS
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(u64::from(self.cid).to_le_bytes().to_vec())
    }

    /// What the driver had has ended.
    fn restore(&mut self, _state: &DeviceSaved) -> Result<()> {
        self.owes_event = true;
        Ok(())
    }

    fn reset(&mut self) {
        self.table = Table::new(self.cid, self.table.counts.clone());
        (self.lacks_room, self.sends_wait, self.owes_event) = (false, false, false);
        self.ends_until = None;
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        self.accepts_at = None;
        match index {
            RECEIVES => self.lacks_room = false,
            SENDS => self.receive(&mut queues[SENDS])?,
            _ => self.send_event(&mut queues[EVENTS])?,
        }
        self.deliver(queues, None)
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.sources().map(|(_, polled)| polled).collect()
    }

    fn descriptor_ready(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        let source = self.sources().map(|(source, _)| source).nth(index);
        let mut ready = None;
        match source {
            Some(Source::Dialer) => self.take_answer(),
            Some(Source::Listener) => self.accept(),
            Some(Source::Greeting(index)) => self.table.listen(index),
            Some(Source::Stream(ports)) => ready = Some(self.table.ready(ports)),
            None => {}
        }
        self.deliver(queues, ready)
    }

    fn resume_at(&mut self) -> Option<Instant> {
        let look = self.ends_until.map(|_| Instant::now() + LOOK);
        self.accepts_at.into_iter().chain(look).min()
    }
}

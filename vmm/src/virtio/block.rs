//! virtio-blk on a raw image file or block device (virtio 1.2, 5.2).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::metric::Metric;

use super::block_request::{Operation, RequestError, SEG_MAX, space};
use super::disk_counts::DiskCounts;
use super::queue::{Chain, Left, Served, Turn, Virtqueue};
use super::saved::DeviceSaved;
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::config::DiskConfig;
use crate::disk_image::{DiskImage, Way};
use crate::engine::{Engine, Job, Kind, MAX_JOBS};
use crate::memory::buffers::{Buffers, Held};
use crate::rate::Limiter;

/// Entries of each queue: what a request of [`SEG_MAX`] data buffers takes, with header and status.
const QUEUE_SIZE: u16 = SEG_MAX as u16 + 2;
/// More queues than this gain nothing: one thread serves them all.
const MAX_QUEUES: u16 = 4;

/// A request whose job is not done.
struct Request {
    queue: usize,
    head: u16,
    /// Where its status goes.
    status: Held,
    /// Bytes that could be written before that.
    room: u32,
    kind: Kind,
    /// Where on the disk its data goes, in bytes, and how much that is.
    offset: u64,
    len: u32,
}

/// A disk.
pub struct Block {
    image: DiskImage,
    name: String,
    id: [u8; DiskConfig::MAX_ID],
    queues: u16,
    /// The driver does not flush: each write has to be durable when it is completed.
    write_through: bool,
    counts: Arc<DiskCounts>,
    /// The limits of requests and of bytes of their data.
    pub limiter: Option<Limiter>,
    engine: Engine,
    /// Those that the engine has, by the keys of their jobs.
    requests: BTreeMap<u32, Request>,
    /// A queue whose next request waits until nothing is in flight; nothing overtakes it.
    alone: Option<usize>,
    /// Requests were left in queues for want of room in the engine, or because of `alone`.
    left: bool,
}

impl Block {
    /// The `index`-th disk, backed by `image`, for a machine with `cpus` CPUs.
    pub fn new(image: DiskImage, index: usize, id: Option<&str>, cpus: u32) -> Result<Self> {
        let name = format!("disk{index}");
        let mut padded = [0; DiskConfig::MAX_ID];
        let id = id.unwrap_or(&name).bytes();
        padded.iter_mut().zip(id).for_each(|(to, from)| *to = from);
        let queues = u16::try_from(cpus).unwrap_or(MAX_QUEUES).clamp(1, MAX_QUEUES);
        let engine = image.engine()?;
        Ok(Self {
            image,
            name,
            id: padded,
            queues,
            write_through: true,
            counts: Arc::default(),
            limiter: None,
            engine,
            requests: BTreeMap::new(),
            alone: None,
            left: false,
        })
    }

    /// Replaces the image. The driver sees its size; its units and whether it is read-only do not change.
    pub fn set_image(&mut self, image: DiskImage) {
        // The driver's next flush reaches only the new one.
        if let Err(error) = self.image.flush() {
            log::error!("{}: what was written last may be lost: {error}", self.name);
        }
        self.image = image;
    }

    #[cfg(test)]
    pub(super) fn set_engine(&mut self, engine: Engine) {
        self.engine = engine;
    }

    /// The backing image.
    pub fn image(&self) -> &DiskImage {
        &self.image
    }

    /// The same, to be changed while the device is stopped.
    pub fn image_mut(&mut self) -> &mut DiskImage {
        &mut self.image
    }

    /// The counters of requests.
    pub fn counts(&self) -> &Arc<DiskCounts> {
        &self.counts
    }

    /// Whether the limit lets a request with so much data be served now.
    fn admit(&mut self, bytes: u64) -> bool {
        let Some(limiter) = &mut self.limiter else { return true };
        let admitted = limiter.admit(bytes, Instant::now());
        if !admitted {
            self.counts.throttled.inc();
        }
        admitted
    }

    /// Begins a request of queue `queue`, or completes it.
    fn serve(&mut self, queue: usize, chain: &mut Chain) -> Result<Served> {
        if self.alone.is_some_and(|first| first != queue) || self.engine.jobs() >= MAX_JOBS {
            self.left = true;
            return Ok(Served::Stays);
        }
        // One has a header, the other a status; a driver that sends neither pays for it.
        let (sent, wanted) = (chain.readable.len(), chain.writable.len());
        let bytes = sent.saturating_sub(16) + wanted.saturating_sub(1);
        let status = chain.writable.take_last_byte();
        let status = status.context("a request without room for its status")?;
        let room = u32::try_from(chain.writable.len())?;
        let operation = Operation::parse(chain, &self.image);
        let way = operation.as_ref().map_or(Way::Alone, |operation| self.way(operation));
        let waits = matches!(way, Way::Alone) && operation.as_ref().is_ok_and(Operation::touches);
        if waits && self.engine.jobs() > 0 {
            (self.alone, self.left) = (Some(queue), true);
            return Ok(Served::Stays);
        }
        self.alone = None;
        if !self.admit(bytes as u64) {
            return Ok(Served::Stays);
        }
        let result = match (operation, way) {
            (Ok(Operation::Transfer { kind, offset, data }), Way::Job(file, at)) => {
                let len = u32::try_from(data.len())?;
                let status = Held::new(status.into(), chain.ram);
                let status = status.context("a status that leaves RAM")?;
                let memory = Held::new(data, chain.ram).context("a buffer that leaves RAM")?;
                let head = chain.head;
                let request = Request { queue, head, status, room, kind, offset, len };
                let cached = !self.image.direct();
                self.begin(request, Job { key: 0, kind, file, offset: at, memory, cached })?;
                return Ok(Served::InFlight);
            }
            (Ok(operation), _) => self.execute(operation, &mut chain.writable),
            (Err(error), _) => Err(error),
        };
        let code = self.code(&result);
        status.copy_from(&[code]);
        Ok(Served::Done(written(result.unwrap_or(0) as u32, room)))
    }

    /// How what `operation` asks for is done.
    fn way(&self, operation: &Operation) -> Way {
        match operation {
            Operation::Transfer { kind: Kind::Write, .. } if self.write_through => Way::Alone,
            Operation::Transfer { data, kind, .. } if data.is_empty() && *kind != Kind::Flush => {
                Way::Alone
            }
            Operation::Transfer { kind, offset, data } => {
                self.image.way(*kind, *offset, data.len() as u64)
            }
            Operation::Id | Operation::Zero(_) => Way::Alone,
        }
    }

    /// Has the engine do `job` for `request`.
    fn begin(&mut self, request: Request, job: Job) -> Result<()> {
        let key = u32::from(request.head) | (request.queue as u32) << 16;
        // The same chain twice at a time would be two answers to one request.
        ensure!(!self.requests.contains_key(&key), "a chain that is in flight already");
        self.requests.insert(key, request);
        self.engine.start(Job { key, ..job });
        Ok(())
    }

    /// Does what has to be done while nothing is in flight. Returns how many bytes of `room` it has filled.
    fn execute(&mut self, operation: Operation, room: &mut Buffers) -> Result<usize, RequestError> {
        match operation {
            Operation::Transfer { kind, offset, data } => {
                let len = data.len();
                self.transfer(kind, offset, data)?;
                self.count(kind, len as u64);
                if kind == Kind::Write {
                    self.flush_if_write_through()?;
                }
                Ok(if kind == Kind::Read { len } else { 0 })
            }
            Operation::Id => Ok(room.take(self.id.len()).copy_from(&self.id)),
            Operation::Zero(ranges) => {
                self.counts.discards.inc();
                for (offset, len, how) in ranges {
                    self.image.zero(offset, len, how)?;
                }
                self.flush_if_write_through()?;
                Ok(0)
            }
        }
    }

    fn transfer(&mut self, kind: Kind, offset: u64, data: Buffers) -> io::Result<()> {
        match kind {
            Kind::Read => self.image.read(data, offset),
            Kind::Write => self.image.write(data, offset),
            Kind::Flush => self.image.flush(),
        }
    }

    fn flush_if_write_through(&mut self) -> io::Result<()> {
        if self.write_through { self.image.flush() } else { Ok(()) }
    }

    fn count(&self, kind: Kind, len: u64) {
        let (count, bytes) = match kind {
            Kind::Read => (&self.counts.reads, &self.counts.read_bytes),
            Kind::Write => (&self.counts.writes, &self.counts.write_bytes),
            Kind::Flush => return self.counts.flushes.inc(),
        };
        count.inc();
        bytes.add(len);
    }

    /// The status of a request that ended like this.
    fn code<T>(&self, result: &Result<T, RequestError>) -> u8 {
        let code = match result {
            Ok(_) => return blk::VIRTIO_BLK_S_OK as u8,
            Err(RequestError::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
            Err(RequestError::Invalid) => blk::VIRTIO_BLK_S_IOERR,
            Err(RequestError::Io(error)) => {
                self.image.log(&self.name, error);
                blk::VIRTIO_BLK_S_IOERR
            }
        };
        self.counts.errors.inc();
        code as u8
    }

    /// Completes the requests whose jobs are done; returns whose queues' they are.
    fn complete(&mut self, queues: &mut [Virtqueue]) -> Result<Vec<usize>> {
        while let Some((job, result)) = self.engine.finished()? {
            let Some(request) = self.requests.remove(&job.key) else { continue };
            let result = match result {
                Err(error) if self.image.wants_bounce(&error) => {
                    let at =
                        request.offset + u64::from(request.len) - job.memory.buffers().len() as u64;
                    self.transfer(job.kind, at, job.memory.buffers().clone())
                }
                result => result,
            };
            if result.is_ok() && job.kind == Kind::Write {
                self.image.has_written(request.offset, request.len.into());
            }
            if result.is_err() && job.kind == Kind::Flush {
                self.image.has_failed_to_flush();
            }
            let code = self.code(&result.map_err(RequestError::Io));
            request.status.buffers().copy_from(&[code]);
            let is_ok = u32::from(code) == blk::VIRTIO_BLK_S_OK;
            if is_ok {
                self.count(request.kind, request.len.into());
            }
            let filled = if is_ok && request.kind == Kind::Read { request.len } else { 0 };
            queues[request.queue].complete(request.head, written(filled, request.room))?;
        }
        let mut completed = Vec::new();
        for (index, queue) in queues.iter_mut().enumerate() {
            if queue.interrupt()? {
                completed.push(index);
            }
        }
        let has_room = match self.alone {
            Some(_) => self.engine.jobs() == 0,
            None => self.engine.jobs() < MAX_JOBS,
        };
        if has_room && std::mem::take(&mut self.left) {
            queues.iter().try_for_each(Virtqueue::kick)?;
        }
        Ok(completed)
    }
}

/// The used length of a request whose status comes after `room` bytes, of which the first ones are `filled`: the driver
/// may rely on the bytes from the start on, without a gap (virtio 1.2, 2.7.8.2).
fn written(filled: u32, room: u32) -> u32 {
    if filled == room { room + 1 } else { filled }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn features(&self) -> u64 {
        let mut features = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        if self.queues > 1 {
            features |= 1 << blk::VIRTIO_BLK_F_MQ;
        }
        features
            | if self.image.readonly() {
                1 << blk::VIRTIO_BLK_F_RO
            } else {
                1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(space(&self.image, self.queues))
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Block(self.image.size())
    }

    fn restore(&mut self, state: &DeviceSaved) -> Result<()> {
        let DeviceSaved::Block(size) = *state else { bail!("no state of a disk") };
        let now = self.image.size();
        ensure!(size == now, "{}: it had {size} bytes and has {now}", self.name);
        Ok(())
    }

    fn activate(&mut self, driver: &Driver) {
        self.write_through = driver.features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        let turn = Turn::begin();
        loop {
            let left = queues[index].serve_available(&turn, |chain| self.serve(index, chain));
            self.engine.submit()?;
            let completed = self.complete(queues)?;
            // A driver that waits for nothing else is quick with the next one: before it has to kick.
            let left = left?;
            let may_have_more = matches!(left, Left::Nothing) && completed.contains(&index);
            if !may_have_more && queues[index].ends(left)? {
                return Ok(());
            }
        }
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        // The thread of a disk with nothing in flight waits for fewer things.
        let engine = (self.engine.jobs() > 0).then(|| (self.engine.as_fd(), PollFlags::IN));
        engine.into_iter().collect()
    }

    fn descriptor_ready(&mut self, _index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        // The driver goes on with the next requests, which are served without a kick.
        for index in self.complete(queues)? {
            self.handle(index, queues)?;
        }
        Ok(())
    }

    fn settle(&mut self, queues: &mut [Virtqueue], until: Instant) -> bool {
        self.alone = None;
        while self.engine.jobs() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            let (false, Ok(left)) = (left.is_zero(), Timespec::try_from(left)) else {
                return false;
            };
            // An error is EINTR, by whoever waits for the thread.
            let _ = poll(&mut [PollFd::new(&self.engine, PollFlags::IN)], Some(&left));
            // A queue that cannot be followed has lost its requests; they are taken back all the same.
            if let Err(error) = self.complete(queues) {
                log::debug!("{}: {error:#}", self.name);
            }
        }
        true
    }

    fn resume_at(&mut self) -> Option<Instant> {
        self.limiter.as_mut()?.resume_at()
    }
}

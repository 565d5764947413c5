//! virtio-mem: memory that the guest plugs and unplugs, block by block, as its owner wants (virtio 1.2, 5.15).

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use vmm_sys_util::eventfd::EventFd;

use super::mem_handle::{MemHandle, State};
use super::queue::{Chain, Virtqueue};
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::memory::buffers::Buffers;
use crate::memory::hotplug::Hotplug;
use crate::worker::ThreadKind;

/// Feature bit (5.15.3): the driver keeps away from what is unplugged. One that does not know it may read there,
/// by its CPUs, and finds ones.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Requests (5.15.6).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const QUEUE_SIZE: u16 = 64;
/// How long blocks are plugged before it is looked whether the device is to stop: a request can name 32,000 of them.
const TURN: Duration = Duration::from_millis(if cfg!(miri) { 10_000 } else { 10 });

/// Answers (5.15.6).
#[derive(Clone, Copy)]
enum Answer {
    Ack = 0,
    Nack = 1,
    Busy = 2,
    Error = 3,
}

/// What the driver asks for: `struct virtio_mem_req`.
struct Request {
    kind: u16,
    address: u64,
    /// Of blocks.
    count: u16,
}

impl Request {
    /// `None` if there are not as many bytes.
    fn read(from: &mut Buffers) -> Option<Self> {
        let kind = u16::from_le_bytes(from.read_array()?);
        from.read_array::<6>()?;
        let address = u64::from_le_bytes(from.read_array()?);
        let count = u16::from_le_bytes(from.read_array()?);
        from.read_array::<6>()?;
        Some(Self { kind, address, count })
    }
}

/// What comes of a request.
enum Step {
    Answer(Answer),
    /// An acknowledgement, with the state of the blocks.
    State(u16),
    Work(Job),
}

/// Blocks that are still to be plugged or unplugged, before the request is answered.
struct Job {
    plug: bool,
    all: Range<usize>,
    next: usize,
    answer: Answer,
}

/// The device.
pub struct Mem {
    hotplug: Hotplug,
    state: Arc<State>,
    kick: Option<Arc<EventFd>>,
    /// Of the request that is the next one in the queue.
    unfinished: Option<Job>,
}

impl Mem {
    /// Lets the guest plug and unplug `hotplug`; nothing of it is requested yet.
    pub fn new(hotplug: Hotplug) -> Self {
        let state = Arc::new(State::new(hotplug.blocks().clone()));
        Self { hotplug, state, kick: None, unfinished: None }
    }

    /// What its owner requests more or less memory with.
    pub fn handle(&self) -> MemHandle {
        MemHandle::new(self.state.clone())
    }

    /// What is to be done about `request`.
    fn begin(&self, request: Request) -> Step {
        let blocks = self.hotplug.blocks();
        let Request { kind, address, count } = request;
        if kind == UNPLUG_ALL {
            let all = 0..blocks.count();
            return Step::Work(Job { plug: false, next: 0, all, answer: Answer::Ack });
        }
        let Some(range) = self.blocks_at(address, count.into()) else {
            return Step::Answer(Answer::Error);
        };
        let plugged = range.clone().filter(|index| blocks.is_plugged(*index)).count();
        let bytes = u64::from(count) * blocks.size();
        let work = |plug| Job { plug, next: range.start, all: range.clone(), answer: Answer::Ack };
        match kind {
            PLUG if plugged > 0 => Step::Answer(Answer::Error),
            PLUG if blocks.plugged_bytes() + bytes > self.state.requested() => {
                Step::Answer(Answer::Nack)
            }
            PLUG => Step::Work(work(true)),
            UNPLUG if plugged < range.len() => Step::Answer(Answer::Error),
            UNPLUG => Step::Work(work(false)),
            STATE if plugged == range.len() => Step::State(0),
            STATE if plugged == 0 => Step::State(1),
            STATE => Step::State(2),
            _ => Step::Answer(Answer::Error),
        }
    }

    /// The blocks that a request names; `None` if it cannot name them.
    fn blocks_at(&self, address: u64, count: usize) -> Option<Range<usize>> {
        let blocks = self.hotplug.blocks();
        let offset = address.checked_sub(blocks.start())?;
        let first = usize::try_from(offset / blocks.size()).ok()?;
        let range = first..first.checked_add(count)?;
        let is_whole = offset.is_multiple_of(blocks.size()) && !range.is_empty();
        (is_whole && range.end <= blocks.count()).then_some(range)
    }

    /// Goes on with `job` until `end`, but by one block at least; its answer, once it is done.
    fn work(&mut self, mut job: Job, end: Instant) -> Option<Answer> {
        while job.next < job.all.end {
            let index = job.next;
            job.next += 1;
            if self.hotplug.blocks().is_plugged(index) == job.plug {
                continue;
            }
            let done = if job.plug { self.hotplug.plug(index) } else { self.hotplug.unplug(index) };
            if let Err(error) = done {
                log::debug!("memory block {index}: {error:#}");
                if !job.plug {
                    return Some(Answer::Busy);
                }
                // All of it or nothing.
                let all = job.all.start..index;
                job = Job { plug: false, next: all.start, all, answer: Answer::Busy };
            }
            if Instant::now() >= end && job.next < job.all.end {
                self.unfinished = Some(job);
                return None;
            }
        }
        Some(job.answer)
    }

    /// Serves a request; `None` if there is more to do. Returns the bytes of the answer.
    fn serve(&mut self, chain: &mut Chain, end: Instant) -> Option<u32> {
        let step = match self.unfinished.take() {
            Some(job) => Step::Work(job),
            None => match Request::read(&mut chain.readable) {
                Some(request) => self.begin(request),
                None => Step::Answer(Answer::Error),
            },
        };
        let (answer, state) = match step {
            Step::Answer(answer) => (answer, 0),
            Step::State(state) => (Answer::Ack, state),
            Step::Work(job) => {
                let answer = self.work(job, end);
                self.state.show();
                (answer?, 0)
            }
        };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&(answer as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        Some(chain.writable.copy_from(&bytes) as u32)
    }
}

impl VirtioDevice for Mem {
    fn id(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn name(&self) -> &str {
        "mem"
    }

    fn thread_kind(&self) -> ThreadKind {
        ThreadKind::Memory
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        UNPLUGGED_INACCESSIBLE
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.state.clone()
    }

    fn activate(&mut self, driver: &Driver) {
        self.kick = driver.kicks.first().cloned();
        self.state.connect(Arc::downgrade(driver.interrupt));
    }

    /// What is plugged stays so (5.15.5.2).
    fn reset(&mut self) {
        (self.kick, self.unfinished) = (None, None);
        self.state.connect(Weak::new());
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        let end = Instant::now() + TURN;
        queues[index].serve_some(|chain| Ok(self.serve(chain, end)))?;
        if let (Some(_), Some(kick)) = (&self.unfinished, &self.kick) {
            kick.write(1)?;
        }
        Ok(())
    }
}

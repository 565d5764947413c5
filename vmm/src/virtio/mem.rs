//! virtio-mem: memory that the guest plugs and unplugs, block by block, as the owner requests (virtio 1.2, 5.15).

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use vmm_sys_util::eventfd::EventFd;

use super::mem_handle::{MemHandle, MemState};
use super::queue::{Chain, Virtqueue};
use super::saved::DeviceSaved;
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::memory::buffers::Buffers;
use crate::memory::hotplug::Hotplug;
use crate::worker::ThreadKind;

/// Feature bit (5.15.3): the driver does not access unplugged memory. A driver without this feature may read it with
/// its CPUs, as all ones.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Requests (5.15.6).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const QUEUE_SIZE: u16 = 64;
/// How long blocks are plugged before the device checks whether it has to stop: a request can have 32,000 blocks.
const TURN: Duration = Duration::from_millis(if cfg!(miri) { 10_000 } else { 10 });

/// Response types (5.15.6).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum ResponseType {
    Ack = 0,
    Nack = 1,
    Busy = 2,
    Error = 3,
}

/// A driver's request: `struct virtio_mem_req`.
struct MemRequest {
    kind: u16,
    address: u64,
    /// The number of blocks.
    count: u16,
}

impl MemRequest {
    /// `None` if there are too few bytes.
    fn read(from: &mut Buffers) -> Option<Self> {
        let kind = u16::from_le_bytes(from.read_array()?);
        from.read_array::<6>()?;
        let address = u64::from_le_bytes(from.read_array()?);
        let count = u16::from_le_bytes(from.read_array()?);
        from.read_array::<6>()?;
        Some(Self { kind, address, count })
    }
}

/// The result of starting a request.
enum Begun {
    ResponseType(ResponseType),
    /// Acknowledged, with the state of the blocks.
    State(u16),
    Work(PlugJob),
}

/// What is saved of the device: memory that is requested, in bytes, the blocks that are plugged, and a request that is
/// not completed.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemSaved {
    requested: u64,
    plugged: Vec<Range<usize>>,
    unfinished: Option<PlugJob>,
}

/// Blocks that are still to be plugged or unplugged before the request is completed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PlugJob {
    plug: bool,
    all: Range<usize>,
    next: usize,
    answer: ResponseType,
}

/// The device.
pub struct Mem {
    hotplug: Hotplug,
    state: Arc<MemState>,
    kick: Option<Arc<EventFd>>,
    /// The unfinished request, which is the next in the queue.
    unfinished: Option<PlugJob>,
}

impl Mem {
    /// A device for the blocks of `hotplug`, of which none is requested yet.
    pub fn new(hotplug: Hotplug) -> Self {
        let state = Arc::new(MemState::new(hotplug.blocks().clone()));
        Self { hotplug, state, kick: None, unfinished: None }
    }

    /// The owner's handle.
    pub fn handle(&self) -> MemHandle {
        MemHandle::new(self.state.clone())
    }

    /// Starts `request`.
    fn begin(&self, request: MemRequest) -> Begun {
        let blocks = self.hotplug.blocks();
        let MemRequest { kind, address, count } = request;
        if kind == UNPLUG_ALL {
            let all = 0..blocks.count();
            return Begun::Work(PlugJob { plug: false, next: 0, all, answer: ResponseType::Ack });
        }
        let Some(range) = self.blocks_at(address, count.into()) else {
            return Begun::ResponseType(ResponseType::Error);
        };
        let plugged = range.clone().filter(|index| blocks.is_plugged(*index)).count();
        let bytes = u64::from(count) * blocks.size();
        let work = |plug| PlugJob {
            plug,
            next: range.start,
            all: range.clone(),
            answer: ResponseType::Ack,
        };
        match kind {
            PLUG if plugged > 0 => Begun::ResponseType(ResponseType::Error),
            PLUG if blocks.plugged_bytes() + bytes > self.state.requested() => {
                Begun::ResponseType(ResponseType::Nack)
            }
            PLUG => Begun::Work(work(true)),
            UNPLUG if plugged < range.len() => Begun::ResponseType(ResponseType::Error),
            UNPLUG => Begun::Work(work(false)),
            STATE if plugged == range.len() => Begun::State(0),
            STATE if plugged == 0 => Begun::State(1),
            STATE => Begun::State(2),
            _ => Begun::ResponseType(ResponseType::Error),
        }
    }

    /// The blocks of a request; `None` if its address or count is invalid.
    fn blocks_at(&self, address: u64, count: usize) -> Option<Range<usize>> {
        let blocks = self.hotplug.blocks();
        let offset = address.checked_sub(blocks.start())?;
        let first = usize::try_from(offset / blocks.size()).ok()?;
        let range = first..first.checked_add(count)?;
        let is_whole = offset.is_multiple_of(blocks.size()) && !range.is_empty();
        (is_whole && range.end <= blocks.count()).then_some(range)
    }

    /// Continues with `job` until `end`, by at least one block; returns the response once it is done.
    fn work(&mut self, mut job: PlugJob, end: Instant) -> Option<ResponseType> {
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
                    return Some(ResponseType::Busy);
                }
                // All blocks or none.
                let all = job.all.start..index;
                job = PlugJob { plug: false, next: all.start, all, answer: ResponseType::Busy };
            }
            if Instant::now() >= end && job.next < job.all.end {
                self.unfinished = Some(job);
                return None;
            }
        }
        Some(job.answer)
    }

    /// Serves a request; `None` if it is unfinished. Returns the bytes of the response.
    fn serve(&mut self, chain: &mut Chain, end: Instant) -> Option<u32> {
        let step = match self.unfinished.take() {
            Some(job) => Begun::Work(job),
            None => match MemRequest::read(&mut chain.readable) {
                Some(request) => self.begin(request),
                None => Begun::ResponseType(ResponseType::Error),
            },
        };
        let (answer, state) = match step {
            Begun::ResponseType(answer) => (answer, 0),
            Begun::State(state) => (ResponseType::Ack, state),
            Begun::Work(job) => {
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

    fn save(&self) -> DeviceSaved {
        let blocks = self.hotplug.blocks();
        let mut plugged: Vec<Range<usize>> = Vec::new();
        for index in (0..blocks.count()).filter(|index| blocks.is_plugged(*index)) {
            match plugged.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => plugged.push(index..index + 1),
            }
        }
        let (requested, unfinished) = (self.state.requested(), self.unfinished.clone());
        DeviceSaved::Mem(MemSaved { requested, plugged, unfinished })
    }

    fn restore(&mut self, state: &DeviceSaved) -> Result<()> {
        let DeviceSaved::Mem(saved) = state else { bail!("no state of memory that is plugged") };
        let count = self.hotplug.blocks().count();
        let jobs = saved.unfinished.iter().map(|job| &job.all);
        let fit = saved.plugged.iter().chain(jobs).all(|run| run.end <= count);
        ensure!(fit, "mem: there are {count} blocks");
        for index in saved.plugged.iter().flat_map(Clone::clone) {
            self.hotplug.show(index)?;
        }
        self.unfinished = saved.unfinished.clone();
        Self::handle(self).request(saved.requested)
    }

    fn activate(&mut self, driver: &Driver) {
        self.kick = driver.kicks.first().cloned();
        self.state.connect(Arc::downgrade(driver.interrupt));
    }

    /// Plugged blocks stay plugged (5.15.5.2).
    fn reset(&mut self) {
        (self.kick, self.unfinished) = (None, None);
        self.state.connect(Weak::new());
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        let end = Instant::now() + TURN;
        queues[index].serve_some(|chain| Ok(self.serve(chain, end).into()))?;
        if let (Some(_), Some(kick)) = (&self.unfinished, &self.kick) {
            kick.write(1)?;
        }
        Ok(())
    }
}

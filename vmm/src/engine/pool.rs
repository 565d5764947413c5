//! Jobs on threads, as many as are needed up to a bound; a job that is alone is done by the thread that asks for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Job, Kind, Returned};
use crate::sync::lock;
use crate::worker::{self, ThreadKind};

/// The most threads: what drivers have in flight in a queue, mostly.
const MAX_THREADS: usize = 32;

/// The threads of an engine. They end soon after it is dropped.
pub(super) struct Pool {
    sender: Sender<Job>,
    shared: Arc<Shared>,
    /// Jobs that are not submitted yet.
    started: Vec<Job>,
    /// Jobs that are done.
    done: Vec<Returned>,
    threads: usize,
    /// Jobs that threads have.
    busy: usize,
}

struct Shared {
    jobs: Mutex<Receiver<Job>>,
    done: Mutex<Vec<Returned>>,
    event: EventFd,
}

impl Pool {
    pub fn new() -> io::Result<Self> {
        let (sender, jobs) = channel();
        let event = EventFd::new(EFD_NONBLOCK)?;
        let shared = Shared { jobs: Mutex::new(jobs), done: Mutex::default(), event };
        let (started, done) = Default::default();
        Ok(Self { sender, shared: Arc::new(shared), started, done, threads: 0, busy: 0 })
    }

    pub fn begin(&mut self, job: Job) {
        self.started.push(job);
    }

    pub fn submit(&mut self) {
        let alone = self.busy == 0 && self.started.len() == 1;
        for job in std::mem::take(&mut self.started) {
            if alone || !self.has_thread() {
                self.done.push(run(job));
                continue;
            }
            self.busy += 1;
            // Cannot fail: `shared` has the receiver.
            let _ = self.sender.send(job);
        }
    }

    /// Starts a thread for one more job, if there may be more; whether there is any.
    fn has_thread(&mut self) -> bool {
        if self.threads < MAX_THREADS.min(self.busy + 1) {
            let shared = self.shared.clone();
            match worker::start("disk-io", ThreadKind::Device, move || serve(&shared)) {
                Ok(()) => self.threads += 1,
                Err(error) => log::debug!("disk: {error:#}"),
            }
        }
        self.threads > 0
    }

    pub fn next(&mut self) -> Option<Returned> {
        if self.done.is_empty() && self.busy > 0 {
            let mut done = lock(&self.shared.done);
            let _ = self.shared.event.read();
            self.done.append(&mut done);
            self.busy -= self.done.len();
        }
        self.done.pop()
    }
}

impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        worker::borrow(&self.shared.event)
    }
}

/// What a thread does until the engine is gone.
fn serve(shared: &Shared) {
    loop {
        let next = lock(&shared.jobs).recv();
        let Ok(job) = next else { return };
        let returned = run(job);
        // The event is there as long as the list is not empty: neither is seen without the other.
        let mut done = lock(&shared.done);
        done.push(returned);
        // Cannot fail: the counter is far from its limit.
        let _ = shared.event.write(1);
    }
}

fn run(job: Job) -> Returned {
    let buffers = job.memory.buffers();
    let count = match job.kind {
        Kind::Read => buffers.read_some(&job.file, job.offset),
        Kind::Write => buffers.write_some(&job.file, job.offset),
        Kind::Flush => job.file.sync_data().map(|()| 0),
    };
    (job, count)
}

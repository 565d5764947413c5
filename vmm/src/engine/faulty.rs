//! Jobs as bad hosts do them, for tests: in any order, in parts, late, or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Job, Kind, Returned};
use crate::worker;

/// How many jobs this host has let fail.
#[derive(Default)]
pub struct Failures {
    /// Reads and writes.
    pub transfers: AtomicUsize,
    /// Flushes.
    pub flushes: AtomicUsize,
}

pub(super) struct Faulty {
    /// Jobs, and how often each is passed over before it is done.
    jobs: Vec<(Job, usize)>,
    event: EventFd,
    random: u64,
    failures: Arc<Failures>,
}

impl Faulty {
    pub fn new(seed: u64, failures: Arc<Failures>) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { jobs: Vec::new(), event, random: seed | 1, failures })
    }

    /// Marsaglia's xorshift64.
    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % end as u64) as usize
    }

    pub fn begin(&mut self, job: Job) {
        let late = if self.below(8) == 0 { self.below(100) } else { 0 };
        self.jobs.push((job, late));
    }

    /// From now on, its owner asks until all is done.
    pub fn submit(&self) -> io::Result<()> {
        if self.jobs.is_empty() { Ok(()) } else { self.event.write(1) }
    }

    pub fn next(&mut self) -> Option<Returned> {
        if self.jobs.is_empty() {
            let _ = self.event.read();
            return None;
        }
        let index = self.below(self.jobs.len());
        let (_, late) = &mut self.jobs[index];
        if *late > 0 {
            *late -= 1;
            return None;
        }
        let (job, _) = self.jobs.swap_remove(index);
        let returned = self.try_to_do(&job);
        Some((job, returned))
    }

    fn try_to_do(&mut self, job: &Job) -> io::Result<usize> {
        match self.below(24) {
            0 | 1 => return self.fail(job.kind),
            2 => return Err(io::Error::from_raw_os_error(libc::EINTR)),
            3 => return Err(io::Error::from_raw_os_error(libc::ECANCELED)),
            _ => {}
        }
        let mut data = job.memory.buffers().clone();
        if self.below(4) == 0 && !data.is_empty() {
            let part = self.below(data.len()) + 1;
            // A sector is written whole or not at all.
            data =
                data.take(if job.kind == Kind::Write { part.next_multiple_of(512) } else { part });
        }
        match job.kind {
            Kind::Read => data.read_some(&job.file, job.offset),
            Kind::Write => data.write_some(&job.file, job.offset),
            Kind::Flush => job.file.sync_data().map(|()| 0),
        }
    }

    fn fail(&mut self, kind: Kind) -> io::Result<usize> {
        let failures = match kind {
            Kind::Flush => &self.failures.flushes,
            Kind::Read | Kind::Write => &self.failures.transfers,
        };
        failures.fetch_add(1, Ordering::SeqCst);
        match (kind, self.below(3)) {
            (Kind::Read | Kind::Write, 0) => Ok(0),
            (Kind::Write, 1) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

impl AsFd for Faulty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        worker::borrow(&self.event)
    }
}

//! Reads, writes and flushes of a disk's files, many at a time: by io_uring, or by threads where that cannot be had.

#[cfg(test)]
pub mod faulty;
mod pool;
pub mod ring;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use self::pool::Pool;
use self::ring::Ring;
use crate::memory::buffers::Held;
use crate::sync::lock;

/// The most jobs at a time.
pub const MAX_JOBS: usize = 128;

/// What a job does with its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads all of the memory from the file.
    Read,
    /// Writes all of the memory to the file.
    Write,
    /// Makes what was written survive a crash of the host.
    Flush,
}

/// One read, write or flush.
pub struct Job {
    /// Its owner's name for it.
    pub key: u32,
    /// What it does.
    pub kind: Kind,
    /// With this.
    pub file: Arc<File>,
    /// Where in the file what is left of it starts, in bytes.
    pub offset: u64,
    /// What is left of it.
    pub memory: Held,
    /// The file goes through the page cache, which may have what is read, and takes what is written.
    pub cached: bool,
}

/// A job, and what its system call returned: a count of bytes.
type Returned = (Job, io::Result<usize>);

/// Does jobs.
pub struct Engine {
    way: Way,
    /// Readable when a job is done.
    done: OwnedFd,
    jobs: usize,
    /// Jobs that are not submitted yet.
    started: Vec<Job>,
    /// Jobs that were done as they were submitted.
    done_at_once: VecDeque<Returned>,
}

enum Way {
    /// It is kept for the machine's next life: only a program that does not run a guest yet may make one.
    Ring(Arc<Mutex<Ring>>),
    Pool(Pool),
    #[cfg(test)]
    Faulty(faulty::Faulty),
}

impl Engine {
    /// An engine that uses `ring`, or threads if there is none, or if jobs of a former life hang in it.
    pub fn new(ring: Option<&Arc<Mutex<Ring>>>) -> io::Result<Self> {
        let (way, done) = match ring.filter(|ring| lock(ring).is_idle()) {
            Some(ring) => (Way::Ring(ring.clone()), lock(ring).as_fd().try_clone_to_owned()?),
            None => {
                let pool = Pool::new()?;
                let done = pool.as_fd().try_clone_to_owned()?;
                (Way::Pool(pool), done)
            }
        };
        let (started, done_at_once) = Default::default();
        Ok(Self { way, done, jobs: 0, started, done_at_once })
    }

    #[cfg(test)]
    pub(crate) fn faulty(seed: u64, failures: Arc<faulty::Failures>) -> io::Result<Self> {
        let faulty = faulty::Faulty::new(seed, failures)?;
        let done = faulty.as_fd().try_clone_to_owned()?;
        let (started, done_at_once) = Default::default();
        Ok(Self { way: Way::Faulty(faulty), done, jobs: 0, started, done_at_once })
    }

    /// How many jobs are not returned yet.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Takes `job`, one of at most [`MAX_JOBS`]. It is done after [`Engine::submit`].
    pub fn start(&mut self, job: Job) {
        self.jobs += 1;
        self.started.push(job);
    }

    fn begin(&mut self, job: Job) {
        match &mut self.way {
            Way::Ring(ring) => lock(ring).begin(job),
            Way::Pool(pool) => pool.begin(job),
            #[cfg(test)]
            Way::Faulty(faulty) => faulty.begin(job),
        }
    }

    /// Gets all jobs going that were started.
    pub fn submit(&mut self) -> io::Result<()> {
        let is_alone = self.jobs == 1;
        let mut started = std::mem::take(&mut self.started);
        for job in started.drain(..) {
            match at_once(&job, is_alone) {
                Some(returned) => self.done_at_once.push_back((job, returned)),
                None => self.begin(job),
            }
        }
        self.started = started; // its space, for the next time
        self.submit_begun()
    }

    fn submit_begun(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Ring(ring) => lock(ring).submit(),
            Way::Pool(pool) => {
                pool.submit();
                Ok(())
            }
            #[cfg(test)]
            Way::Faulty(faulty) => faulty.submit(),
        }
    }

    /// A job that is done, or has failed; `None` until the descriptor is readable.
    pub fn finished(&mut self) -> io::Result<Option<(Job, io::Result<()>)>> {
        loop {
            let next = self.done_at_once.pop_front().or_else(|| match &mut self.way {
                Way::Ring(ring) => lock(ring).next(),
                Way::Pool(pool) => pool.next(),
                #[cfg(test)]
                Way::Faulty(faulty) => faulty.next(),
            });
            let Some((mut job, returned)) = next else { return Ok(None) };
            let result = match returned {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Some(do_here(&job)),
                Err(error) => Some(Err(error)),
                Ok(count) => advance(&mut job, count),
            };
            if let Some(result) = result {
                self.jobs -= 1;
                return Ok(Some((job, result)));
            }
            self.begin(job);
            self.submit_begun()?;
        }
    }
}

impl AsFd for Engine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Does `job` if the page cache takes its bytes, or has them: for a job that is alone there is nothing cheaper.
fn at_once(job: &Job, is_alone: bool) -> Option<io::Result<usize>> {
    if !job.cached {
        return None;
    }
    let buffers = job.memory.buffers();
    match job.kind {
        Kind::Read if is_alone => match buffers.read_cached(&job.file, job.offset) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)) => {
                None
            }
            returned => Some(returned),
        },
        Kind::Write => Some(buffers.write_some(&job.file, job.offset)),
        Kind::Read | Kind::Flush => None,
    }
}

/// Does what is left of `job` on this thread. The kernel cancels what it has no thread for, and it starts none in a
/// thread that gets signal after signal, as one does that is to stop (create_worker_cont, io_uring/io-wq.c).
fn do_here(job: &Job) -> io::Result<()> {
    let buffers = job.memory.buffers().clone();
    match job.kind {
        Kind::Read => buffers.read_from_file(&job.file, job.offset),
        Kind::Write => buffers.write_to_file(&job.file, job.offset),
        Kind::Flush => job.file.sync_data(),
    }
}

/// How `job` ends after `count` more bytes; `None` if the call has done a part of it.
fn advance(job: &mut Job, count: usize) -> Option<io::Result<()>> {
    match (job.kind, count) {
        (Kind::Flush, _) => return Some(Ok(())),
        (Kind::Read, 0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
        (Kind::Write, 0) => return Some(Err(io::ErrorKind::WriteZero.into())),
        (Kind::Read | Kind::Write, _) => {}
    }
    job.memory.advance(count);
    job.offset += count as u64;
    job.memory.buffers().is_empty().then_some(Ok(()))
}

#[cfg(test)]
mod tests;

//! Jobs in an io_uring (io_uring(7)) that can do nothing but jobs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread::sleep;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};

use super::{Job, Kind, MAX_JOBS, Returned};

/// How often the kernel is asked again that lacks memory for a request, and how long apart.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// An io_uring with room for all jobs.
pub struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    /// Indices of slots without a job.
    free: Vec<usize>,
}

/// A job that the kernel has, and its memory as the kernel is given it.
#[derive(Default)]
struct Slot {
    job: Option<Job>,
    pieces: Vec<libc::iovec>,
}

// SAFETY: `pieces` point into the memory of `job`, which is `Send`.
unsafe impl Send for Slot {}

impl Ring {
    /// A ring of which no request opens, connects or sends anything, whoever gets hold of it.
    ///
    /// # Errors
    ///
    /// The host does not have it (before Linux 5.10), or does not allow it (`kernel.io_uring_disabled`, seccomp).
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().dontfork().build(MAX_JOBS as u32)?;
        let allowed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        let slots = (0..MAX_JOBS).map(|_| Slot::default()).collect();
        Ok(Self { ring, slots, free: (0..MAX_JOBS).rev().collect() })
    }

    /// Whether the kernel has no job.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn begin(&mut self, job: Job) {
        // There is a free one: the engine's owner has no more jobs than there are slots.
        let Some(index) = self.free.pop() else { return };
        let slot = &mut self.slots[index];
        slot.pieces.clear();
        slot.pieces.extend(job.memory.buffers().pieces());
        let (file, pieces, count) =
            (Fd(job.file.as_raw_fd()), slot.pieces.as_ptr(), slot.pieces.len() as u32);
        let entry = match job.kind {
            Kind::Read => opcode::Readv::new(file, pieces, count).offset(job.offset).build(),
            Kind::Write => opcode::Writev::new(file, pieces, count).offset(job.offset).build(),
            Kind::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        };
        slot.job = Some(job);
        let entry = entry.user_data(index as u64);
        // SAFETY: file, pieces and the memory that they point to stay as they are until the kernel has returned the
        // slot's job.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the ring has an entry for each slot");
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        let mut tries = 0;
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if tries < TRIES => {
                    tries += 1;
                    sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<Returned> {
        let entry = self.ring.completion().next()?;
        let index = entry.user_data() as usize;
        let job = self.slots.get_mut(index)?.job.take()?;
        self.free.push(index);
        let count = usize::try_from(entry.result());
        Some((job, count.map_err(|_| io::Error::from_raw_os_error(-entry.result()))))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open for as long as the ring that is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    /// Memory that the kernel may still write to is never given back.
    fn drop(&mut self) {
        if !self.is_idle() {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::squeue::Entry;

    #[test]
    fn a_ring_opens_connects_and_starts_nothing() {
        let Ok(mut ring) = Ring::new() else { return eprintln!("skipped: no io_uring") };
        let root = c"/".as_ptr();
        let entries: [Entry; 4] = [
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), root).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Fallocate::new(Fd(0), 1).build(),
            opcode::Nop::new().build(),
        ];
        for entry in entries {
            // SAFETY: what the entry points to is static.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.ring.completion().next().unwrap().result(), -libc::EACCES);
        }
        ring.ring.submitter().unregister_eventfd().unwrap_err();
    }
}

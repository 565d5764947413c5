//! What a machine reports to its owner, from any of its threads.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::worker::borrow;

/// How a guest came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It powered off.
    PowerOff,
    /// It asked for the end with this exit status.
    Exited(u8),
    /// It asked for a reset.
    Reset,
    /// A vCPU gave up: triple fault.
    TripleFault,
    /// Its kernel panicked.
    Panic,
    /// Something that should not happen, in words.
    Internal(String),
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Exited(status) => write!(f, "the guest ended with status {status}"),
            Self::Internal(what) => write!(f, "internal error: {what}"),
            Self::Reset => f.write_str("the guest rebooted"),
            Self::TripleFault => f.write_str("triple fault in the guest"),
            Self::Panic => f.write_str("kernel panic in the guest"),
        }
    }
}

/// What the owner of a machine acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest is at its end: the owner stops the machine.
    Halt(Halt),
    /// The guest's init has reported that it runs. Sent once a boot.
    InitRuns,
}

/// The receiving end, which the owner has.
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    sender: EventSender,
}

/// The sending end, for any thread.
#[derive(Clone)]
pub struct EventSender {
    sender: mpsc::Sender<Event>,
    wake: Arc<EventFd>,
}

impl EventSender {
    /// Sends `event`; the machine's owner may be gone already.
    pub fn send(&self, event: Event) {
        let _ = self.sender.send(event);
        let _ = self.wake.write(1);
    }
}

impl Events {
    /// Makes the channel.
    pub fn new() -> Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self { receiver, sender: EventSender { sender, wake } })
    }

    /// A sending end.
    pub fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// Written by whoever has something for the owner, in this channel or elsewhere: [`Self::wait`] returns then.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.sender.wake
    }

    /// Forgets what the guest that has just stopped has reported.
    pub fn forget(&self) {
        self.receiver.try_iter().for_each(drop);
    }

    /// An event that is there already.
    pub fn try_next(&self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// The next event, or `None` when `deadline` has passed.
    pub fn next(&self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return None;
            }
            self.wait(deadline);
        }
    }

    /// Waits until someone has written to [`Self::wake`], a signal came, or `deadline` has passed.
    pub fn wait(&self, deadline: Option<Instant>) {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is EINTR: the caller looks again in any case.
        let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref());
        let _ = self.sender.wake.read();
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.sender.wake)
    }
}

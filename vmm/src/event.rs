//! The events that a machine reports to its owner, from any of its threads.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::worker::borrow;

/// The end of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The guest powered off.
    PowerOff,
    /// The guest wrote this exit status.
    Exited(u8),
    /// The guest requested a reset.
    Reset,
    /// A triple fault of a vCPU.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// An internal error, with its message.
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

/// An event for the owner of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has ended: the owner stops the machine.
    Halt(Halt),
    /// The guest's init has reported that it runs. Sent once a boot.
    InitRuns,
    /// The guest's init has reported that its command reads the console. Sent once a boot.
    ReadsConsole,
}

/// The receiving end, for the owner.
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
    /// Sends `event`; the owner may be gone.
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

    /// Written to when the owner has something to do, in this channel or elsewhere: [`Self::wait`] returns then.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.sender.wake
    }

    /// Drops the events of the guest that has just stopped.
    pub fn forget(&self) {
        self.receiver.try_iter().for_each(drop);
    }

    /// The next event, if there is one.
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

    /// Waits for a write to [`Self::wake`], a signal, or `deadline`.
    pub fn wait(&self, deadline: Option<Instant>) {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is EINTR: the caller checks again in any case.
        let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref());
        let _ = self.sender.wake.read();
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.sender.wake)
    }
}

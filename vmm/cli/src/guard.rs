//! The end of a process whose guest's memory another process provides: whoever touches a page that never comes waits for
//! ever, also the threads that are to stop, and the one that waits for them.
//!
//! The guard is a thread that touches no guest memory. Once the machine is to end, it ends the process if that takes too
//! long.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tinyvmm::worker::{StopFlag, ThreadKind, Work, Worker};

use crate::inbox::{self, End};
use crate::{jail, logger, terminal};

/// Time for the machine to stop once it is to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the guard looks at the time.
const LOOKS_EACH: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Watches the end of this process.
pub struct Guard {
    /// When `--timeout` is over.
    deadline: Option<Instant>,
}

impl Guard {
    /// Starts it.
    pub fn start(deadline: Option<Instant>) -> Result<Worker<Self>> {
        Worker::spawn(Self { deadline })
    }

    /// The end that should have been.
    fn overdue(&self) -> Option<End> {
        if inbox::is_end_overdue(PATIENCE) {
            return Some(End::Signal);
        }
        let late = self.deadline.and_then(|deadline| deadline.checked_add(PATIENCE));
        late.is_some_and(|late| Instant::now() >= late).then_some(End::Timeout)
    }
}

impl Work for Guard {
    fn name(&self) -> String {
        "guard".into()
    }

    fn kind(&self) -> ThreadKind {
        jail::GUARD
    }

    fn run(&mut self, stop: &StopFlag) {
        while !stop.is_set() {
            let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&LOOKS_EACH));
            if let Some(end) = self.overdue().filter(|_| !stop.is_set()) {
                terminal::restore_now();
                logger::print_message(format_args!(
                    "{end}; the process that provides the guest's memory (mem_backend) does not answer"
                ));
                let code = if logger::is_firecracker() { 1 } else { end.exit_code() };
                jail::exit_now(code.into());
            }
        }
    }
}

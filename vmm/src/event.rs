//! What reaches the thread that owns the machine: the machine's end, and the user's signals.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::api::Call;
use crate::worker::borrow;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for the end with this exit status.
    Exited(u8),
    /// The guest asked for a reset.
    Reset,
    /// A CPU gave up: triple fault.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// `--timeout` is over.
    Timeout,
    /// A signal, and the guest did not power off in time.
    Stopped,
    /// A client of the API asked for it.
    StoppedByApi,
    /// Ctrl-A x.
    Quit,
    /// Something that should not happen, in words.
    Internal(String),
}

impl Halt {
    /// The process's exit code; `tinyvmm --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Exited(status) => *status,
            Self::Internal(_) => 1,
            Self::Reset => 4,
            Self::TripleFault => 5,
            Self::Panic => 6,
            Self::Timeout => 7,
            Self::Stopped | Self::StoppedByApi => 8,
            Self::Quit => 9,
        }
    }

    /// A word for it, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Exited(_) => "exit",
            Self::Internal(_) => "internal-error",
            Self::Reset => "reboot",
            Self::TripleFault => "triple-fault",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Stopped => "signal",
            Self::StoppedByApi => "api",
            Self::Quit => "quit",
        }
    }
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
            Self::Timeout => f.write_str("stopped: --timeout is over"),
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::StoppedByApi => f.write_str("stopped over the API"),
            Self::Quit => f.write_str("stopped from the terminal"),
        }
    }
}

/// Something that the owner of the machine acts on.
#[derive(Debug)]
pub enum Event {
    /// The machine, or its terminal, is at its end.
    Halt(Halt),
    /// The user wants the machine to stop: SIGTERM, SIGINT, SIGHUP or SIGQUIT.
    StopRequest,
    /// A client of the API wants something.
    Api(Call),
}

/// The receiving end. There is one in a process.
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

/// Signals that came and were not yet told, and whom to wake for them.
static PENDING: AtomicU32 = AtomicU32::new(0);
static WAKE: OnceLock<Arc<EventFd>> = OnceLock::new();

extern "C" fn on_stop_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    PENDING.fetch_add(1, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1); // write(2), which a handler may call
    }
}

/// Signals that the process was started with ignored, a bit each from SIGHUP on (proc(5), SigIgn).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The signals that ask the process to stop. What is ignored on purpose is none of them: SIGHUP under nohup,
/// SIGINT in a script's background.
pub fn stop_signals() -> impl Iterator<Item = i32> {
    let ignored = ignored_signals();
    let all = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
    all.into_iter().filter(move |signal| ignored & 1 << (signal - 1) == 0)
}

impl Events {
    /// Makes the channel and takes over the signals that ask a process to stop.
    pub fn new() -> Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let wake = WAKE.get_or_init(|| wake).clone();
        for signal in stop_signals() {
            register_signal_handler(signal, on_stop_signal).context("cannot handle signals")?;
        }
        let (sender, receiver) = mpsc::channel();
        Ok(Self { receiver, sender: EventSender { sender, wake } })
    }

    /// A sending end.
    pub fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// Forgets how the guest that has just stopped ended. What the user wants is not forgotten.
    pub fn forget_halts(&self) {
        let is_guests = |event: &Event| matches!(event, Event::Halt(halt) if *halt != Halt::Quit);
        let events: Vec<_> = self.receiver.try_iter().collect();
        let others = events.into_iter().filter(|event| !is_guests(event));
        others.for_each(|event| self.sender.send(event));
    }

    /// The next event, or `None` when `deadline` has passed.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            // First: a guest can see to it that there always is an event.
            if PENDING
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                return Some(Event::StopRequest);
            }
            if let Ok(event) = self.receiver.try_recv() {
                return Some(event);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::from_borrowed_fd(borrow(&self.sender.wake), PollFlags::IN)];
            // An error is EINTR: the loop looks again in any case.
            let _ = poll(&mut fds, timeout.as_ref());
            let _ = self.sender.wake.read();
        }
    }
}

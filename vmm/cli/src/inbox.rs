//! The messages to the thread that owns the machine: events of the machine, signals, and calls of doors.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::logger;
use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use tinyvmm::event::{Event, EventSender, Events, Halt};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

/// Why the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest has ended.
    Guest(Halt),
    /// `--timeout` is over.
    Timeout,
    /// A signal asked for a stop, and the guest did not power off in time.
    Signal,
    /// A client of the API has ended the machine.
    Api,
    /// Ctrl-A x.
    Quit,
    /// A signal that ends Firecracker.
    Killed(i32),
}

impl End {
    /// The process's exit code; `tinyvmm --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Guest(Halt::PowerOff) => 0,
            Self::Guest(Halt::Exited(status)) => *status,
            Self::Guest(Halt::Internal(_)) => 1,
            Self::Guest(Halt::Reset) => 4,
            Self::Guest(Halt::TripleFault) => 5,
            Self::Guest(Halt::Panic) => 6,
            Self::Timeout => 7,
            Self::Signal | Self::Api | Self::Killed(_) => 8,
            Self::Quit => 9,
        }
    }

    /// The name of the end in the boot report.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Guest(Halt::PowerOff) => "power-off",
            Self::Guest(Halt::Exited(_)) => "exit",
            Self::Guest(Halt::Internal(_)) => "internal-error",
            Self::Guest(Halt::Reset) => "reboot",
            Self::Guest(Halt::TripleFault) => "triple-fault",
            Self::Guest(Halt::Panic) => "panic",
            Self::Timeout => "timeout",
            Self::Signal | Self::Killed(_) => "signal",
            Self::Api => "api",
            Self::Quit => "quit",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Guest(halt) => halt.fmt(f),
            Self::Timeout => f.write_str("stopped: --timeout is over"),
            Self::Signal => f.write_str("stopped by a signal"),
            Self::Api => f.write_str("stopped over the API"),
            Self::Quit => f.write_str("stopped from the terminal"),
            // Firecracker's words.
            Self::Killed(signal) => {
                write!(f, "Shutting down VM after intercepting signal {signal}, code 0.")
            }
        }
    }
}

/// A message to the owner of the machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// The machine reports an event.
    Machine(Event),
    /// The user wants the machine to stop: SIGTERM, SIGINT, SIGHUP or SIGQUIT.
    StopRequest,
    /// The user has pressed the keys that end the process.
    Quit,
    /// Another process has sent a signal that ends this one.
    Killed(i32),
    /// A door's own channel is not empty.
    Door,
}

/// The owner's receiving end. A process has one.
pub struct Inbox {
    machine: Events,
    flags: Arc<Flags>,
}

#[derive(Default)]
struct Flags {
    quit: AtomicBool,
    door: AtomicBool,
}

/// Wakes the owner of the machine, from any thread.
#[derive(Clone)]
pub struct Waker {
    flags: Arc<Flags>,
    wake: Arc<EventFd>,
}

impl Waker {
    /// Reports that the user wants the process to end.
    pub fn quit(&self) {
        self.flags.quit.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
    }

    /// Reports that a door's channel is not empty.
    pub fn door(&self) {
        self.flags.door.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
    }
}

/// The number of signals that the owner has not acted on yet, and the descriptor that wakes the owner for them.
static PENDING: AtomicU32 = AtomicU32::new(0);
static WAKE: OnceLock<Arc<EventFd>> = OnceLock::new();
/// A signal that ends the process; 0: none.
static KILLED: AtomicI32 = AtomicI32::new(0);

/// Time for a guest to power off once its power button was pressed.
pub const GRACE: Duration = Duration::from_secs(5);
/// When the machine is to end, in seconds of the monotonic clock.
static ENDS: AtomicU64 = AtomicU64::new(u64::MAX);

/// The machine is to end within `time` from now. A handler may call it.
pub fn expect_end_within(time: Duration) {
    ENDS.fetch_min(seconds() + time.as_secs(), Ordering::SeqCst);
}

/// Whether it was to end more than `patience` ago.
pub fn is_end_overdue(patience: Duration) -> bool {
    seconds() >= ENDS.load(Ordering::SeqCst).saturating_add(patience.as_secs())
}

fn seconds() -> u64 {
    clock_gettime(ClockId::Monotonic).tv_sec.cast_unsigned()
}

extern "C" fn on_stop_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    request_stop();
}

/// Does what a signal does that asks the process to stop.
pub fn request_stop() {
    expect_end_within(GRACE);
    PENDING.fetch_add(1, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1); // write(2), which a handler may call
    }
}

/// Ends the process for `signal`. A handler may call it.
pub fn end_by(signal: i32) {
    expect_end_within(Duration::ZERO);
    KILLED.store(signal, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1);
    }
}

/// Signals that the process was started with ignored, a bit each from SIGHUP on (proc(5), SigIgn).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The signals that ask the process to stop. Those that are ignored on purpose are left out: SIGHUP under nohup, SIGINT
/// of a script's background job.
pub fn stop_signals() -> impl Iterator<Item = i32> {
    // Found once: later no file can be opened.
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let ignored = *IGNORED.get_or_init(ignored_signals);
    let all = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
    // Firecracker ends at once when its terminal hangs up.
    let is_other = |signal: i32| signal == libc::SIGHUP && logger::is_firecracker();
    all.into_iter().filter(move |signal| ignored & 1 << (signal - 1) == 0 && !is_other(*signal))
}

/// Has signals that ask the process to stop come to the inbox, also after others have taken them. One that cannot be
/// handled stays whose it was.
pub fn take_signals() {
    for signal in stop_signals() {
        let _ = register_signal_handler(signal, on_stop_signal);
    }
}

impl Inbox {
    /// Makes the channel and takes over the signals that ask a process to stop.
    pub fn new() -> Result<Self> {
        let machine = Events::new()?;
        WAKE.get_or_init(|| machine.wake().clone());
        for signal in stop_signals() {
            register_signal_handler(signal, on_stop_signal).context("cannot handle signals")?;
        }
        Ok(Self { machine, flags: Arc::default() })
    }

    /// The sending end for the machine.
    pub fn sender(&self) -> EventSender {
        self.machine.sender()
    }

    /// The sending end for doors and for the terminal.
    pub fn waker(&self) -> Waker {
        Waker { flags: self.flags.clone(), wake: self.machine.wake().clone() }
    }

    /// Drops the events of the guest that has just stopped. Requests of the user are kept.
    pub fn forget_guest(&self) {
        self.machine.forget();
    }

    /// Readable when there may be a message.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.machine.as_fd()
    }

    /// The next message, or `None` when `deadline` has passed.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Message> {
        loop {
            if let signal @ 1.. = KILLED.load(Ordering::SeqCst) {
                return Some(Message::Killed(signal));
            }
            // Signals first: a guest can keep the channel of events from ever being empty.
            let fewer = |pending: u32| pending.checked_sub(1);
            if PENDING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
                return Some(Message::StopRequest);
            }
            if self.flags.quit.load(Ordering::SeqCst) {
                return Some(Message::Quit);
            }
            if self.flags.door.swap(false, Ordering::SeqCst) {
                return Some(Message::Door);
            }
            if let Some(event) = self.machine.try_next() {
                return Some(Message::Machine(event));
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return None;
            }
            self.machine.wait(deadline);
        }
    }
}

//! The signals that reach the command in the guest instead of this process.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tinyvmm::worker::borrow;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use crate::inbox::stop_signals;

/// Signals that have come, a bit for each number, and the descriptor that wakes us for them.
static PENDING: AtomicU64 = AtomicU64::new(0);
static WAKE: OnceLock<EventFd> = OnceLock::new();

/// What programs have a meaning of their own for. They end neither this process nor, unasked, the command.
const OTHERS: [i32; 3] = [libc::SIGALRM, libc::SIGUSR1, libc::SIGUSR2];

extern "C" fn on_signal(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    PENDING.fetch_or(1 << number, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1); // write(2), which a handler may call
    }
}

/// The signals that are passed on to the command.
pub struct Signals(&'static EventFd);

impl Signals {
    /// Takes them over; with a terminal, also changes of its size.
    pub fn new(with_terminal: bool) -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let wake = WAKE.get_or_init(|| event);
        let others = OTHERS.into_iter().chain(with_terminal.then_some(libc::SIGWINCH));
        for signal in stop_signals().chain(others) {
            register_signal_handler(signal, on_signal).context("cannot handle signals")?;
        }
        Ok(Self(wake))
    }

    /// Readable when there are some.
    pub fn wake(&self) -> BorrowedFd<'_> {
        borrow(self.0)
    }

    /// The numbers of those that have come.
    pub fn take(&self) -> impl Iterator<Item = u8> + use<> {
        let _ = self.0.read();
        let pending = PENDING.swap(0, Ordering::SeqCst);
        (1..64).filter(move |number| pending & 1 << number != 0)
    }
}

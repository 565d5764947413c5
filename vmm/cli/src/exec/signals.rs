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
const OTHERS: [i32; 4] = [libc::SIGALRM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

extern "C" fn on_signal(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    PENDING.fetch_or(1 << number, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1); // write(2), which a handler may call
    }
}

/// The signals that are passed on to the command.
pub struct Signals {
    wake: &'static EventFd,
    /// SIGWINCH is a change of the terminal's size; without one it is a signal like the others.
    pub has_terminal: bool,
}

impl Signals {
    /// Takes them over.
    pub fn new(has_terminal: bool) -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let wake = WAKE.get_or_init(|| event);
        for signal in stop_signals().chain(OTHERS) {
            register_signal_handler(signal, on_signal).context("cannot handle signals")?;
        }
        Ok(Self { wake, has_terminal })
    }

    /// Readable when there are some.
    pub fn wake(&self) -> BorrowedFd<'_> {
        borrow(self.wake)
    }

    /// The numbers of those that have come.
    pub fn take(&self) -> impl Iterator<Item = u8> + use<> {
        let _ = self.wake.read();
        let pending = PENDING.swap(0, Ordering::SeqCst);
        (1..64).filter(move |number| pending & 1 << number != 0)
    }
}

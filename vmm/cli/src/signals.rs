//! Resets the signal settings that the parent process has passed on; and signals that end a process by Firecracker's
//! name, with a line in its log.

use std::io::stderr;

use anyhow::{Context, Result};
use vmm_sys_util::signal::{get_blocked_signals, register_signal_handler, unblock_signal};

use crate::{inbox, jail, terminal};

/// A signal that is intercepted; its exit code (FcExitCode in Firecracker's src/vmm/src/lib.rs) and field of metrics.
type Intercepted = (i32, u8, &'static str);
const INTERCEPTED: [Intercepted; 5] = [
    (libc::SIGHUP, 156, "sighup"),
    (libc::SIGBUS, 149, "sigbus"),
    (libc::SIGSEGV, 150, "sigsegv"),
    (libc::SIGXCPU, 154, "sigxcpu"),
    (libc::SIGILL, 157, "sigill"),
];

/// Exit code and field of metrics for an intercepted signal.
pub fn intercepted(signal: i32) -> Option<(u8, &'static str)> {
    let found = INTERCEPTED.iter().find(|(other, ..)| *other == signal);
    found.map(|(_, code, field)| (*code, *field))
}

/// From now on these signals end the process as they end Firecracker.
pub fn intercept() -> Result<()> {
    INTERCEPTED.iter().try_for_each(|(signal, ..)| {
        register_signal_handler(*signal, on_signal).context("cannot handle signals")
    })
}

/// What another process sends is the owner's to act on. After a fault of this process's own nothing else can be done:
/// only what signal-safety(7) allows, and system calls that every filter of the jail allows.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t to its handlers.
    let code = unsafe { (*info).si_code };
    // SI_USER and below are from kill(2) and its kin; limits raise their signals so, too.
    if code <= 0 {
        return inbox::end_by(signal);
    }
    let (exit_code, name) = intercepted(signal).unwrap_or_default();
    terminal::restore_now();
    for text in ["tinyvmm: a fault of this process's own, ", name, ", has ended it: a bug\n"] {
        let _ = rustix::io::write(stderr(), text.as_bytes());
    }
    jail::exit_now(exit_code.into());
}

/// Unblocks all signals and makes children waitable, whatever the parent process has set. Other ignored signals stay
/// ignored. To be called first of all.
pub fn reset() {
    // execve(2) keeps the mask of blocked signals.
    for signal in get_blocked_signals().unwrap_or_default() {
        let _ = unblock_signal(signal);
    }
    // With SIGCHLD ignored, which execve(2) keeps too, a child's status is lost (wait(2)).
    // SAFETY: the default action of SIGCHLD is to do nothing; no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

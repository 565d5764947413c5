//! Resets the signal settings that the parent process has passed on.

use vmm_sys_util::signal::{get_blocked_signals, unblock_signal};

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

//! The signals of a process as it was started, put right.

use vmm_sys_util::signal::{get_blocked_signals, unblock_signal};

/// Undoes what whoever started this process has done to its signals and would keep it from its work: none is blocked
/// then, and its children can be waited for. What is ignored otherwise stays so. To be called first of all.
pub fn reset() {
    // execve(2) keeps the mask.
    for signal in get_blocked_signals().unwrap_or_default() {
        let _ = unblock_signal(signal);
    }
    // Ignored, as execve(2) keeps it too, nobody learns how a child has ended (wait(2)).
    // SAFETY: the default action of SIGCHLD is to do nothing; no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

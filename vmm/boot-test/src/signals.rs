//! The signals that ask the runner to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// Whether a signal has come.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_stop_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Returns a flag that SIGTERM, SIGINT, SIGHUP and SIGQUIT set from now on, even if they were blocked at the start. A
/// signal that is ignored on purpose (SIGHUP under nohup) stays ignored.
pub fn interrupt_flag() -> Result<&'static AtomicBool> {
    let ignored = ignored_signals();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        if ignored & 1 << (signal - 1) == 0 {
            register_signal_handler(signal, on_stop_signal).context("cannot handle signals")?;
        }
        unblock_signal(signal).map_err(|error| anyhow!("cannot handle signals: {error:?}"))?;
    }
    Ok(&INTERRUPTED)
}

/// A bit for each signal from SIGHUP on that the process was started with ignored (proc(5), SigIgn).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

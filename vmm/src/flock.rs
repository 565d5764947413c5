//! Locks on files that other programs hold for a moment.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::Duration;

/// How often to try: systemd-udevd has a block device locked for some tens of milliseconds after each change, and
/// what makes partitions or file systems while it does (systemd.io, "Locking Block Device Access").
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks `file` for one writer, or `shared` for readers; waits a second for others that have it locked.
pub fn lock(file: &File, shared: bool) -> Result<(), TryLockError> {
    let try_lock = || if shared { file.try_lock_shared() } else { file.try_lock() };
    for _ in 0..TRIES {
        match try_lock() {
            Err(TryLockError::WouldBlock) => sleep(PAUSE),
            done => return done,
        }
    }
    try_lock()
}

//! Locks on files that other programs lock for a moment.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::Duration;

/// How often to try: systemd-udevd locks a block device for some tens of milliseconds after each change, and programs
/// that make partitions or file systems while they do (systemd.io, "Locking Block Device Access").
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks `file` for one writer, or `shared` for readers; waits up to a second for other holders.
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

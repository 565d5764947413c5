//! Locks on files that other programs lock for a moment.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

/// How often to try: systemd-udevd locks a block device for some tens of milliseconds after each change, and programs
/// that make partitions or file systems while they do (systemd.io, "Locking Block Device Access").
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks `file` for one writer, or `shared` for readers; waits up to two seconds for other holders, and names `remedy`
/// if one stays. Returns false where the file system has no locks, which readers get by with.
pub fn lock(file: &File, shared: bool, remedy: &str) -> Result<bool> {
    let try_lock = || if shared { file.try_lock_shared() } else { file.try_lock() };
    for _ in 0..TRIES {
        match try_lock() {
            Err(TryLockError::WouldBlock) => sleep(PAUSE),
            done => return judge(done, shared, remedy),
        }
    }
    judge(try_lock(), shared, remedy)
}

fn judge(done: Result<(), TryLockError>, shared: bool, remedy: &str) -> Result<bool> {
    let error = match done {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => bail!("in use by another machine{remedy}"),
        Err(TryLockError::Error(error)) => error,
    };
    // Lustre, NFS without lockd, some of FUSE.
    let has_none = [libc::ENOSYS, libc::ENOLCK, libc::EOPNOTSUPP].map(Some);
    ensure!(has_none.contains(&error.raw_os_error()), "cannot lock it: {error}");
    ensure!(
        shared,
        "its file system has no locks ({error}): add ,lock=off if no other machine uses it"
    );
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn without_locks_readers_go_on_and_a_writer_is_shown_the_remedy() {
        let failed = |errno, shared| {
            judge(Err(TryLockError::Error(io::Error::from_raw_os_error(errno))), shared, "")
        };
        for errno in [libc::ENOSYS, libc::ENOLCK, libc::EOPNOTSUPP] {
            assert!(!failed(errno, true).unwrap());
            let error = failed(errno, false).unwrap_err().to_string();
            assert!(error.contains("no locks") && error.contains("add ,lock=off"), "{error}");
        }
        for shared in [false, true] {
            let error = failed(libc::EIO, shared).unwrap_err().to_string();
            assert!(error.starts_with("cannot lock it: "), "{error}");
            let error = judge(Err(TryLockError::WouldBlock), shared, ": stop it").unwrap_err();
            assert_eq!(error.to_string(), "in use by another machine: stop it");
            assert!(judge(Ok(()), shared, "").unwrap());
        }
    }
}

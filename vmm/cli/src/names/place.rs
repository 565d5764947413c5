//! Where machines with names are: a folder for each, in one that is its user's alone.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, unlinkat};
use rustix::process::geteuid;

pub(super) const API: &str = "api.sock";
pub(super) const CONSOLE: &str = "console.sock";
pub(super) const VSOCK: &str = "vsock";
pub(super) const LOG: &str = "console.log";
/// What the machine is. Its process holds a lock on the file.
pub(super) const DESCRIPTION: &str = "machine.json";
/// All files of a folder, in the order of their removal: a folder without the last one is free.
const FILES: [&str; 5] = [API, CONSOLE, VSOCK, LOG, DESCRIPTION];

/// Longest path of a machine's folder: that of a socket has at most 107 bytes (unix(7)).
pub(super) const MAX_PATH: usize = 107 - "/console.sock".len();

/// Tries to get the lock: `tinyvmm ps` has it for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// The folder of all machines of this user.
pub(super) fn all() -> PathBuf {
    let user = geteuid().as_raw();
    let is_ours = |folder: &PathBuf| {
        let found = fs::metadata(folder);
        folder.is_absolute()
            && found.is_ok_and(|at| at.is_dir() && at.uid() == user && at.mode() & 0o022 == 0)
    };
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_ours) {
        Some(folder) => folder.join("tinyvmm"),
        // Another user can make this one first; then it is refused.
        None => format!("/tmp/tinyvmm-{user}").into(),
    }
}

/// Opens a folder that nobody else has access to. Links are not followed.
pub(super) fn open(folder: &Path) -> Result<File> {
    let named = || format!("folder {}", folder.display());
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY);
    let file = match options.open(folder) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(error)
                .context("something else is in its place, remove it")
                .with_context(named);
        }
        file => file.with_context(named)?,
    };
    let found = file.metadata()?;
    let is_private = found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0;
    ensure!(
        is_private,
        "{}: others have access to it: remove it, or set XDG_RUNTIME_DIR to a folder of your own",
        named()
    );
    Ok(file)
}

/// Opens the folder, which is made if it is not there.
pub(super) fn make(folder: &Path) -> Result<File> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("folder {}", folder.display()))
        }
        _ => open(folder),
    }
}

/// Opens a file of a machine's folder, and makes it if `create` says so.
pub(super) fn file(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(create).create(create).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Takes the folder of the machine `name`, which may be left from a process that was killed. Returns its description,
/// locked for as long as it is open.
pub(super) fn take(all: &Path, name: &str) -> Result<File> {
    let path = all.join(name).join(DESCRIPTION);
    for _ in 0..TRIES {
        make(&all.join(name))?;
        let description = match file(&path, true) {
            // The machine that had it has just ended.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            description => description.with_context(|| path.display().to_string())?,
        };
        match description.try_lock() {
            Ok(()) if is_at(&description, &path) => return Ok(description),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock its folder"),
        }
    }
    bail!("a machine of this name runs: take another, or say tinyvmm stop {name}")
}

/// Whether `file` is still the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    let (ours, found) = (file.metadata().map(id), fs::symlink_metadata(path).map(id));
    ours.is_ok_and(|ours| found.is_ok_and(|found| ours == found))
}

/// Removes the folder of the machine `name` from `all`. To be called by who has its lock.
pub(super) fn remove(all: &File, name: &str) {
    for file in FILES {
        let _ = unlinkat(all, format!("{name}/{file}"), AtFlags::empty());
    }
    // The next machine of this name may have made its own file there.
    let _ = unlinkat(all, name, AtFlags::REMOVEDIR);
}

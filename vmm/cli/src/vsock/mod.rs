//! What a vsock device has of the host: a socket at which programs connect, and a process that connects to programs.

mod dialer;

use std::ffi::OsStr;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::param::linux_execfn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tinyvmm::virtio::vsock::host::Host;

pub use self::dialer::{DIALER, dial};
use crate::config::JailConfig;
use crate::socket::{self, Socket};

/// How long the dialer may take to end.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Files that this process should be able to have open: a thousand connections, and all else.
const FILES: u64 = 4096;

/// The sockets of a machine. Dropping it removes the one that has a path.
pub struct Vsock {
    /// What the device gets.
    pub host: Host,
    /// It ends, and removes the socket, when the other end of its own is shut, however this process ends.
    dialer: Child,
    end: UnixStream,
}

impl Vsock {
    /// Listens at `path`, and starts the dialer, which becomes the user of `jail`.
    pub fn open(path: &Path, jail: Option<&JailConfig>) -> Result<Self> {
        Self::at(path, jail).with_context(|| format!("--vsock path={}", path.display()))
    }

    fn at(path: &Path, jail: Option<&JailConfig>) -> Result<Self> {
        raise_limit()?;
        let Socket { listener, place } = socket::listen(path)?;
        let (end, its) = UnixStream::pair()?;
        let mut command = Command::new(this_program());
        command.arg0(DIALER).arg(place.name()).args(jail.map(ToString::to_string));
        let folder: OwnedFd = place.folder().try_clone()?.into();
        // Errors go to a pipe without a reader: a chroot may have no /dev/null.
        command.stdin(OwnedFd::from(its)).stdout(folder).stderr(io::pipe()?.1);
        let dialer = command.spawn().inspect_err(|_| place.remove());
        let dialer = dialer.context("cannot start the process that connects to the host")?;
        let host = Host::new(listener.into(), end.try_clone()?.into())?;
        Ok(Self { host, dialer, end })
    }
}

/// This program, even if another is at its path by now. A chroot may have no /proc: then it is the path by which the
/// process was started.
fn this_program() -> &'static OsStr {
    let exe = OsStr::new("/proc/self/exe");
    if Path::new(exe).exists() { exe } else { OsStr::from_bytes(linux_execfn().to_bytes()) }
}

/// Has this process have as many files open as it may, if it needs them.
fn raise_limit() -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.map(|now| now.max(maximum.map_or(FILES, |most| most.min(FILES))));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).context("cannot raise ulimit -n")
}

impl Drop for Vsock {
    fn drop(&mut self) {
        let _ = self.end.shutdown(Shutdown::Write);
        loop {
            let mut end = [PollFd::new(&self.end, PollFlags::IN)];
            match poll(&mut end, Some(&PATIENCE)) {
                Ok(0) => return log::warn!("the process that connects to the host hangs"),
                Ok(_) => {}
                Err(_) => continue,
            }
            // Late answers, and then its end.
            match read(&self.end, &mut [0; 64]) {
                Ok(1..) | Err(Errno::INTR | Errno::AGAIN) => {}
                _ => break,
            }
        }
        // Fails where --jail has made it another process's child.
        let _ = self.dialer.wait();
    }
}

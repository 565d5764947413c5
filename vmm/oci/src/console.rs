//! A terminal for a process, whose other end an engine gets.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Makes a terminal, sends the end of its user to who listens at `socket`, and returns the end of programs.
pub fn open(process: &Process, socket: &Path) -> Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = openpt(flags).context("cannot make a terminal")?;
    grantpt(&user)?;
    unlockpt(&user)?;
    if let Some(size) = process.console_size() {
        let side = |value| u16::try_from(value).unwrap_or(u16::MAX);
        let (ws_row, ws_col) = (side(size.height()), side(size.width()));
        tcsetwinsize(&user, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    let line = ioctl_tiocgptpeer(&user, flags)?;
    send(&user, socket).with_context(|| format!("--console-socket {}", socket.display()))?;
    Ok(line)
}

/// Sends a descriptor, with the name that engines expect.
fn send(fd: &OwnedFd, socket: &Path) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    messages.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(stream, &[IoSlice::new(b"/dev/ptmx")], &mut messages, SendFlags::NOSIGNAL)?;
    Ok(())
}

//! The dialer: a process that connects to Unix sockets beside one path for a guest, for the jail forbids that to the
//! machine's own. It takes numbers and gives sockets; that is all that it does, and nobody's word is a path to it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, Read, stdin, stdout};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{fchdir, setsid};
use tinyvmm::virtio::vsock::host::CALL;
use vmm_sys_util::signal::block_signal;

use crate::config::JailConfig;
use crate::socket::SocketPath;
use crate::{inbox, jail};

/// The name that this program is started by to be a dialer.
pub const DIALER: &str = "tinyvmm-dialer";

/// Runs a dialer until its standard input, a socket, is shut. Its standard output is the folder of the socket whose name
/// is the first of the arguments; the second one is the value of --jail.
pub fn dial(argv: &[OsString]) -> ExitCode {
    // Nobody reads its errors; the machine's process sees its end.
    match prepare(argv).and_then(|place| answer_calls(place.name()).map(|()| place.remove())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn prepare(argv: &[OsString]) -> Result<SocketPath> {
    let name = argv.get(1).context("no name")?;
    let user = argv.get(2).map(|user| user.to_str().context("a user")).transpose()?;
    let user: Option<JailConfig> = user.map(str::parse).transpose().map_err(Error::msg)?;
    jail::close_inherited()?;
    // The machine's signals are not for it, nor is its terminal.
    let _ = setsid();
    inbox::stop_signals().for_each(|signal| drop(block_signal(signal)));
    rustix::thread::set_name(c"tinyvmm-dialer")?;
    let folder = File::from(stdout().as_fd().try_clone_to_owned()?);
    fchdir(&folder)?;
    let place = SocketPath::find(folder, name.clone())?;
    jail::limit_dialer(place.folder(), user.as_ref())?;
    Ok(place)
}

/// Answers each call in turn.
fn answer_calls(name: &OsStr) -> Result<()> {
    let mut call = [0; CALL];
    loop {
        match stdin().read_exact(&mut call) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let [a, b, c, d, tag @ ..] = call;
        let port = u32::from_le_bytes([a, b, c, d]);
        match connect_to(name, port).and_then(|stream| answer(tag, 0, Some(&stream))) {
            Ok(()) => {}
            // Also where too many sockets are on their way already.
            Err(error) => answer(tag, error.raw_os_error(), None)?,
        }
    }
}

/// A socket that is connected to the one for `port`, beside `name` in the working directory.
fn connect_to(name: &OsStr, port: u32) -> rustix::io::Result<OwnedFd> {
    let mut path = name.to_owned();
    path.push(format!("_{port}"));
    // It does not wait for one that has a queue already.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    Ok(stream)
}

fn answer(tag: [u8; 4], error: i32, stream: Option<&OwnedFd>) -> Result<(), Errno> {
    let answer = [tag, error.to_le_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let streams = stream.map(|stream| [stream.as_fd()]);
    if let Some(streams) = &streams {
        control.push(SendAncillaryMessage::ScmRights(streams));
    }
    sendmsg(stdin(), &[IoSlice::new(&answer)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

//! What a vsock device has of the host: a socket at which programs connect to the guest, and a dialer, by which the guest
//! connects to programs. Nothing is opened here: the dialer is another process.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::{ioctl_fionbio, read};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with,
    recvmsg, send,
};

use crate::sync::lock;

/// Bytes of a call of the dialer and of its answer. A call is a port and a tag; an answer that tag and an error number, or
/// 0 with a connected, non-blocking socket (SCM_RIGHTS). All are 32 bits, little-endian.
pub const CALL: usize = 8;

/// The host's ends, by default none. Clones share them.
#[derive(Clone, Default)]
pub struct Host {
    pub(super) listener: Option<Arc<OwnedFd>>,
    pub(super) dialer: Option<Arc<OwnedFd>>,
    /// A port, and the stream that the guest's first connection to it leads to.
    first: Arc<Mutex<Option<(u32, OwnedFd)>>>,
    /// The next call's: answers to a device that is gone must not be taken for others.
    tag: Arc<AtomicU32>,
}

impl Host {
    /// A listening Unix socket, and a stream to a dialer, which answers each call in turn.
    pub fn new(listener: OwnedFd, dialer: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&listener, true)?;
        ioctl_fionbio(&dialer, true)?;
        let [listener, dialer] = [listener, dialer].map(|end| Some(Arc::new(end)));
        Ok(Self { listener, dialer, ..Self::default() })
    }

    /// Has the guest's first connection to `port` lead to `stream`; later ones are the dialer's.
    pub fn serve_first(&self, port: u32, stream: OwnedFd) -> io::Result<()> {
        ioctl_fionbio(&stream, true)?;
        *lock(&self.first) = Some((port, stream));
        Ok(())
    }

    /// The stream for a connection to `port` that is the first.
    pub(super) fn first(&self, port: u32) -> Option<OwnedFd> {
        lock(&self.first).take_if(|(own, _)| *own == port).map(|(_, stream)| stream)
    }

    /// The next program that connects.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.as_ref().ok_or(ErrorKind::NotConnected)?;
        Ok(accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
    }

    /// Calls `port`; returns the tag of the answer.
    ///
    /// # Errors
    ///
    /// The dialer is gone, or has too many calls already.
    pub(super) fn call(&self, port: u32) -> io::Result<u32> {
        let dialer = self.dialer.as_ref().ok_or(ErrorKind::NotConnected)?;
        let tag = self.tag.fetch_add(1, Ordering::Relaxed);
        let call = [port.to_le_bytes(), tag.to_le_bytes()].concat();
        // Of a few bytes in a stream the kernel takes all or none.
        send(dialer, &call, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(tag)
    }

    /// The next answer: its tag, and a socket if the call has succeeded.
    ///
    /// # Errors
    ///
    /// WouldBlock: there is none yet. Any other: there will be no more.
    pub(super) fn answer(&self) -> io::Result<(u32, Option<OwnedFd>)> {
        let dialer = self.dialer.as_ref().ok_or(ErrorKind::NotConnected)?;
        let mut bytes = [0; CALL];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(dialer, into, &mut control, flags)?;
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        let [a, b, c, d, ..] = bytes;
        match received.bytes {
            CALL => Ok((u32::from_le_bytes([a, b, c, d]), socket)),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Longest first line: `CONNECT 4294967295`.
const MAX_LINE: usize = 32;

/// A program that has connected and says which port of the guest's it wants: `CONNECT PORT`, a line.
pub(super) struct Greeting {
    pub stream: OwnedFd,
    line: Vec<u8>,
}

impl Greeting {
    pub fn new(stream: OwnedFd) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// Reads on, not beyond the line; returns the port once the line is whole.
    ///
    /// # Errors
    ///
    /// It is no such line, or the program is gone.
    pub fn read(&mut self) -> io::Result<Option<u32>> {
        while self.line.len() < MAX_LINE {
            let mut byte = [0];
            match read(&self.stream, &mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => return self.port().map(Some),
                Ok(_) => self.line.extend(byte),
                Err(error) if is_temporary(&error.into()) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    fn port(&self) -> io::Result<u32> {
        let line = str::from_utf8(&self.line).map_err(io::Error::other)?;
        let port = line.trim_ascii().strip_prefix("CONNECT ").map(str::trim_ascii);
        let port = port.and_then(|port| port.parse().ok());
        port.ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

/// Whether a call can be tried again.
pub(super) fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

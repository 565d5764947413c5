//! One client's connection: its input and output buffers. Nothing here blocks.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::http::{self, Head, HttpError};

/// Limit for a request to arrive, and for a response to be read.
const SLOW: Duration = Duration::from_secs(5);
/// Limit for a connection without a request.
const IDLE: Duration = Duration::from_secs(60);
/// Most files that come with a request: those of a snapshot of a machine with as many disks as there can be.
const MOST_FILES: usize = 16;
/// Bytes of one read.
const PIECE: usize = 4096;

pub(super) struct Connection {
    stream: UnixStream,
    /// What came along with `input`.
    files: Vec<File>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are sent already.
    sent: usize,
    /// When the last request began, or its response was sent.
    since: Instant,
    /// The client has closed its sending end.
    ended: bool,
    /// The connection is closed once `output` is sent and the client's input is drained: a client that still writes
    /// then would see a reset instead of the response.
    closes: bool,
    /// [`http::CONTINUE`] was sent for this request.
    continued: bool,
}

impl Connection {
    /// `stream` must be non-blocking.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            files: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            since: Instant::now(),
            ended: false,
            closes: false,
            continued: false,
        }
    }

    /// Whether there is output to be sent.
    pub(super) fn is_sending(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether there is neither a request nor a response under way.
    pub(super) fn is_idle(&self) -> bool {
        self.input.is_empty() && !self.is_sending()
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// When the connection is closed for its slowness.
    pub(super) fn deadline(&self) -> Instant {
        self.since + if self.is_idle() && !self.closes { IDLE } else { SLOW }
    }

    /// Reads what is available, a piece at a time; false when the client is gone.
    pub(super) fn read(&mut self) -> bool {
        let mut piece = [0; PIECE];
        match self.receive(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(_) if self.closes => {}
            Ok(len) => {
                if self.is_idle() {
                    self.since = Instant::now();
                }
                self.input.extend(&piece[..len]);
            }
            Err(error) => return is_temporary(&error),
        }
        true
    }

    /// Reads bytes, and takes the files that come with them.
    fn receive(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut room = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(piece)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.stream, &mut pieces, &mut room, flags)?;
        for message in room.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files.map(File::from));
            }
        }
        // What is too much is closed.
        self.files.truncate(MOST_FILES);
        Ok(received.bytes)
    }

    /// Takes the files that came with a request.
    pub(super) fn take_files(&mut self) -> Vec<File> {
        std::mem::take(&mut self.files)
    }

    /// Takes a request whose body has arrived. `None`: it is incomplete.
    pub(super) fn take_request(
        &mut self,
        max_bytes: usize,
    ) -> Option<Result<(Head, Vec<u8>), HttpError>> {
        if self.is_sending() || self.closes || self.input.is_empty() {
            return None;
        }
        let head = match http::parse(&self.input, max_bytes) {
            Err(refusal) => return Some(Err(refusal)),
            Ok(None) => return None,
            Ok(Some(head)) => head,
        };
        let len = head.len + head.body;
        if self.input.len() < len {
            if head.waits && !std::mem::replace(&mut self.continued, true) {
                // Not retried: a client that has not read its last response can do without.
                let _ = self.stream.write(http::CONTINUE);
            }
            return None;
        }
        let mut request: Vec<u8> = self.input.drain(..len).collect();
        self.continued = false;
        let body = request.split_off(head.len);
        Some(Ok((head, body)))
    }

    /// Queues `bytes`, the last ones if `closes`.
    pub(super) fn send(&mut self, bytes: Vec<u8>, closes: bool) {
        (self.output, self.sent, self.closes) = (bytes, 0, closes);
        self.since = Instant::now();
    }

    /// Sends as much as the socket takes; false when the client is gone.
    pub(super) fn write(&mut self) -> bool {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) => return is_temporary(&error),
            }
        }
        if self.is_sending() {
            self.since = Instant::now();
            self.output = Vec::new();
        }
        if self.closes {
            self.input.clear();
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.input.is_empty() {
            self.input = Vec::new(); // frees the memory of a large body
        }
        true
    }

    /// Whether the connection is done.
    pub(super) fn is_over(&self) -> bool {
        self.ended && !self.is_sending()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

//! One client: what it has sent, and what it is still to be sent. Nothing here waits.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::http::{self, Head, Refusal};

/// How long a request may take to arrive, and an answer to be read.
const SLOW: Duration = Duration::from_secs(5);
/// How long a connection may be of no use.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const PIECE: usize = 4096;

pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are sent.
    sent: usize,
    /// When it last began a request, or was done with one.
    since: Instant,
    /// The client has sent all that it will.
    ended: bool,
    /// To be closed once `output` is sent, and all that is on its way has come: a client that still writes then
    /// would learn of a closed connection, and not of its answer.
    closes: bool,
    /// It was told to go on with its body.
    told: bool,
}

impl Connection {
    /// `stream` does not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            since: Instant::now(),
            ended: false,
            closes: false,
            told: false,
        }
    }

    /// Whether it waits for its client to read, rather than to write.
    pub(super) fn is_sending(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether neither a request nor an answer is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.input.is_empty() && !self.is_sending()
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.since + if self.is_idle() && !self.closes { IDLE } else { SLOW }
    }

    /// Reads what is there, a piece at a time; false when the client is gone.
    pub(super) fn read(&mut self) -> bool {
        let mut piece = [0; PIECE];
        match self.stream.read(&mut piece) {
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

    /// Takes a request that has arrived, with its body. `None`: there is more to come.
    pub(super) fn take_request(
        &mut self,
        most_bytes: usize,
    ) -> Option<Result<(Head, Vec<u8>), Refusal>> {
        if self.is_sending() || self.closes || self.input.is_empty() {
            return None;
        }
        let head = match http::parse(&self.input, most_bytes) {
            Err(refusal) => return Some(Err(refusal)),
            Ok(None) => return None,
            Ok(Some(head)) => head,
        };
        let len = head.len + head.body;
        if self.input.len() < len {
            if head.waits && !std::mem::replace(&mut self.told, true) {
                // As much as fits: one that has not read its last answer needs not be told.
                let _ = self.stream.write(http::CONTINUE);
            }
            return None;
        }
        let mut request: Vec<u8> = self.input.drain(..len).collect();
        self.told = false;
        let body = request.split_off(head.len);
        Some(Ok((head, body)))
    }

    /// Sends `bytes`, the last ones if `closes`.
    pub(super) fn send(&mut self, bytes: Vec<u8>, closes: bool) {
        (self.output, self.sent, self.closes) = (bytes, 0, closes);
        self.since = Instant::now();
    }

    /// Sends what can be sent; false when the client is gone.
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
            self.input = Vec::new(); // the room of a large body
        }
        true
    }

    /// Whether nothing more can come of it.
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

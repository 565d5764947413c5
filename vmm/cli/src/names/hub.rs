//! The console of a machine with a name, for its log and for those who attach. A thread is between them and the
//! machine's own console, so that none of them holds up the guest.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use super::place;
use super::ring::{Log, PIECE};
use crate::jail;
use crate::socket::{self, Socket};
use tinyvmm::worker::{StopFlag, ThreadKind, Work};

/// Most clients at a time.
const MAX_CLIENTS: usize = 16;
/// What one more reads before it is disconnected.
const FULL: &[u8] = b"[tinyvmm: too many are attached]\r\n";
/// What a client reads in place of output that its socket had no room for.
const GAP: &[u8] = b"\r\n[tinyvmm: output is missing here]\r\n";
/// The pause after a client that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Hub {
    /// The other end of the console's copy. All sockets are non-blocking.
    console: UnixStream,
    listener: UnixListener,
    log: Log,
    clients: Vec<Client>,
}

/// Gets the bytes that the guest prints, and sends those that are typed.
struct Client {
    stream: UnixStream,
    /// Output was skipped since the last that was sent.
    has_gap: bool,
}

impl Client {
    /// Sends what the socket has room for; false when the client is gone.
    fn send(&mut self, bytes: &[u8]) -> bool {
        if self.has_gap {
            match self.stream.write(GAP) {
                Ok(len) if len == GAP.len() => self.has_gap = false,
                Ok(_) => return true,
                Err(error) => return is_temporary(&error),
            }
        }
        match self.stream.write(bytes) {
            Ok(len) => self.has_gap = len < bytes.len(),
            Err(error) if is_temporary(&error) => self.has_gap = true,
            Err(_) => return false,
        }
        true
    }
}

impl Hub {
    /// Makes the console's socket and log in a machine's folder; also returns the end of the console's copy.
    pub(super) fn open(folder: &Path) -> Result<(Self, File)> {
        let Socket { listener, .. } = socket::listen(&folder.join(place::CONSOLE))?;
        let log = place::file(&folder.join(place::LOG), true).and_then(Log::new);
        let (console, copy) = UnixStream::pair().context("cannot make sockets")?;
        console.set_nonblocking(true)?;
        copy.set_nonblocking(true)?;
        let log = log.context(place::LOG)?;
        let hub = Self { console, listener, log, clients: Vec::new() };
        Ok((hub, File::from(OwnedFd::from(copy))))
    }

    /// Waits; returns whether there is output, whether there is a newcomer, and which clients have typed.
    fn wait(&self, stop: &StopFlag) -> (bool, bool, Vec<bool>) {
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.console.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        let streams = self.clients.iter().map(|client| client.stream.as_fd());
        fds.extend(streams.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // An error is EINTR: none is ready then.
        let done = poll(&mut fds, None).is_ok();
        let mut ready = fds.iter().skip(1).map(|fd| done && !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        (next(), next(), ready.collect())
    }

    /// Passes a piece of the guest's output on; false if there is none.
    fn pass_on(&mut self) -> bool {
        let mut piece = [0; PIECE];
        let Ok(len @ 1..) = self.console.read(&mut piece) else { return false };
        // Who follows the log connects, reads it, and is woken by its socket: so it either finds this piece in the log,
        // or is a client by now.
        self.log.append(&piece[..len]);
        while self.accept() {}
        self.clients.retain_mut(|client| client.send(&piece[..len]));
        true
    }

    /// Passes on what a client has typed. What the guest does not read is dropped. False when the client is gone.
    fn listen(console: &mut UnixStream, client: &mut Client) -> bool {
        let mut typed = [0; 256];
        match client.stream.read(&mut typed) {
            Ok(0) => return false,
            Ok(len) => drop(console.write(&typed[..len])),
            Err(error) => return is_temporary(&error),
        }
        true
    }

    /// Accepts a client that waits; false if there is none.
    fn accept(&mut self) -> bool {
        match self.listener.accept() {
            Ok((mut stream, _)) if stream.set_nonblocking(true).is_ok() => {
                if self.clients.len() < MAX_CLIENTS {
                    self.clients.push(Client { stream, has_gap: false });
                } else {
                    let _ = stream.write(FULL);
                }
                true
            }
            // Out of descriptors or memory: the listener stays readable.
            Err(error) if !is_temporary(&error) => {
                thread::sleep(PAUSE);
                false
            }
            _ => false,
        }
    }
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Work for Hub {
    fn name(&self) -> String {
        "attach".into()
    }

    fn kind(&self) -> ThreadKind {
        jail::ATTACH
    }

    fn run(&mut self, stop: &StopFlag) {
        while !stop.is_set() {
            let (output, newcomer, typed) = self.wait(stop);
            let mut typed = typed.into_iter();
            self.clients.retain_mut(|client| {
                !typed.next().unwrap_or(false) || Self::listen(&mut self.console, client)
            });
            if output {
                self.pass_on();
            }
            if newcomer {
                self.accept();
            }
        }
        // The guest's last words.
        while self.pass_on() {}
    }
}

//! A command that runs in a guest: its streams, its signals, its end.

use std::io::{self, ErrorKind, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;

use agent_wire::{Kind, WINDOW, put, size};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;

use super::agent::{Connection, failure, strange};
use super::signals::Signals;
use crate::logger;

/// Most bytes that are read at a time.
const PIECE: usize = 32 << 10;
/// Most bytes that a pipe with room takes without blocking (pipe(7), PIPE_BUF).
const AT_ONCE: usize = 4096;
/// How often a user says that it is to end.
const ENOUGH: u32 = 3;
/// Added to the number of a signal, as shells do.
const BY_SIGNAL: u8 = 128;

/// What is under way to and from a command.
pub struct Session {
    connection: Connection,
    signals: Signals,
    /// What the connection had no room for yet.
    out: Vec<u8>,
    /// How many more bytes of input may be under way.
    window: usize,
    with_input: bool,
    /// Output that was not printed yet, and how much of it was.
    shown: (bool, Vec<u8>, usize),
    /// How often the user has asked for the end.
    stops: u32,
}

/// What poll(2) found: news on the connection, room there, input, room for output, signals.
struct Ready([bool; 5]);

impl Session {
    /// A command that was started on `connection`. It gets standard input if `with_input`.
    pub fn new(connection: Connection, signals: Signals, with_input: bool) -> Self {
        let mut out = Vec::new();
        if !with_input {
            put(&mut out, Kind::Input, &[]);
        }
        let shown = (false, Vec::new(), 0);
        Self { connection, signals, out, window: WINDOW, with_input, shown, stops: 0 }
    }

    /// Runs it to its end; returns its exit code.
    pub fn run(mut self) -> Result<u8> {
        self.connection.stream.set_nonblocking(true)?;
        loop {
            if let Some(code) = self.take_frames()? {
                return Ok(code);
            }
            let Ready([news, room, input, output, signals]) = self.wait()?;
            if signals && let Some(code) = self.pass_on_signals() {
                return Ok(code);
            }
            if output && let Some(code) = self.show()? {
                return Ok(code);
            }
            if input {
                self.read_in()?;
            }
            if room || !self.out.is_empty() {
                self.flush()?;
            }
            if news {
                self.connection.receive()?;
            }
        }
    }

    fn shows_all(&self) -> bool {
        self.shown.1.len() == self.shown.2
    }

    fn wait(&self) -> Result<Ready> {
        let stream = &self.connection.stream;
        // What was printed is waited for before more is read: the guest's command waits, too.
        let news = if self.shows_all() { PollFlags::IN } else { PollFlags::empty() };
        let room = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let reads = self.with_input && self.out.is_empty() && self.window > 0;
        let input = if reads { PollFlags::IN } else { PollFlags::empty() };
        let output = if self.shows_all() { PollFlags::empty() } else { PollFlags::OUT };
        let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
        let shown = if self.shown.0 { stderr.as_fd() } else { stdout.as_fd() };
        // What is not waited for is replaced by the signals, without events: poll(2) always reports an end.
        let entry = |used: bool, fd, flags| {
            PollFd::from_borrowed_fd(if used { fd } else { self.signals.wake() }, flags)
        };
        let mut fds = [
            entry(!(news | room).is_empty(), stream.as_fd(), news | room),
            entry(reads, stdin.as_fd(), input),
            entry(!self.shows_all(), shown, output),
            entry(true, self.signals.wake(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => return Ok(Ready([false, false, false, false, true])),
            done => done?,
        };
        let [stream, input, output, signals] = fds.map(|fd| fd.revents());
        let gone = stream.intersects(PollFlags::HUP | PollFlags::ERR);
        let news = stream.contains(PollFlags::IN) || gone && !news.is_empty();
        let some = |used: bool, events: PollFlags| used && !events.is_empty();
        let (input, output) = (some(reads, input), some(!self.shows_all(), output));
        Ok(Ready([news, stream.contains(PollFlags::OUT), input, output, !signals.is_empty()]))
    }

    /// Acts on the frames that are there, up to output that has to be shown. Returns the exit code at the end.
    fn take_frames(&mut self) -> Result<Option<u8>> {
        while self.shows_all() {
            let Some((kind, payload)) = self.connection.inbound.next().map_err(strange)? else {
                break;
            };
            match (kind, payload) {
                (Kind::Output | Kind::Errors, _) => {
                    self.shown = (kind == Kind::Errors, payload.to_vec(), 0);
                }
                (Kind::Taken, [a, b, c, d]) => {
                    let taken = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                    self.window = self.window.saturating_add(taken).min(WINDOW);
                }
                (Kind::Status, [0, status]) => return Ok(Some(*status)),
                (Kind::Status, [1, signal]) => return Ok(Some(BY_SIGNAL.wrapping_add(*signal))),
                (Kind::Failure, _) => {
                    let (code, reason) = failure(payload);
                    logger::print_message(reason);
                    return Ok(Some(code));
                }
                _ => bail!("what answers in the guest is no agent of tinyvmm's"),
            }
        }
        Ok(None)
    }

    /// Prints as much as can be printed without waiting. Returns the exit code if nobody reads it any more.
    fn show(&mut self) -> Result<Option<u8>> {
        let (is_errors, bytes, done) = &mut self.shown;
        let rest = &bytes[*done..];
        let rest = &rest[..rest.len().min(AT_ONCE)];
        let written = match is_errors {
            true => rustix::io::write(stderr(), rest),
            false => rustix::io::write(stdout(), rest),
        };
        match written {
            Ok(len) => *done += len,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE) => return Ok(Some(BY_SIGNAL + libc::SIGPIPE as u8)),
            Err(error) => return Err(error).context("cannot print the command's output"),
        }
        Ok(None)
    }

    /// Passes on input, or its end.
    fn read_in(&mut self) -> Result<()> {
        let mut bytes = [0; PIECE];
        let room = self.window.min(PIECE);
        // Not through the buffer of `Stdin`, which poll(2) does not see.
        let len = match rustix::io::read(stdin(), &mut bytes[..room]) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            // A terminal that is gone has ended.
            Err(Errno::IO) => 0,
            len => len.context("cannot read standard input")?,
        };
        put(&mut self.out, Kind::Input, &bytes[..len]);
        self.window -= len;
        self.with_input = len > 0;
        Ok(())
    }

    /// Passes on signals; returns the exit code if the user has asked for the end often enough.
    fn pass_on_signals(&mut self) -> Option<u8> {
        for number in self.signals.take() {
            if i32::from(number) == libc::SIGWINCH {
                if let Ok(now) = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())) {
                    put(&mut self.out, Kind::Size, &size(now.ws_row, now.ws_col));
                }
                continue;
            }
            self.stops += u32::from([libc::SIGINT, libc::SIGTERM].contains(&number.into()));
            if self.stops >= ENOUGH {
                return Some(BY_SIGNAL + number);
            }
            put(&mut self.out, Kind::Signal, &[number]);
        }
        None
    }

    /// Sends what the connection takes. A command that has ended may be gone with its status still to be read.
    fn flush(&mut self) -> Result<()> {
        match self.connection.stream.write(&self.out) {
            Ok(len) => _ = self.out.drain(..len),
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
            Err(error) if is_gone(&error) => self.out.clear(),
            Err(error) => return Err(error).context("the connection to the guest is lost"),
        }
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind())
}

//! A command that runs in a guest: its streams, its signals, its end.

use std::io::{self, ErrorKind, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agent_wire::{Kind, WINDOW, put, size};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use tinyvmm::worker::StopFlag;

use super::LOST;
use super::agent::{Connection, failure, strange};
use super::input::{Input, PIECE};
use super::signals::Signals;
use crate::logger;

/// Most bytes that a pipe with room takes without blocking (pipe(7), PIPE_BUF).
const AT_ONCE: usize = 4096;
/// How often a user says that it is to end.
const ENOUGH: u32 = 3;
/// Added to the number of a signal, as shells do.
const BY_SIGNAL: u8 = 128;
/// Time to print what has come of a command when the machine has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a session ends.
pub enum End {
    /// The command has ended, with this exit code.
    Status(u8),
    /// The command is left to itself: nobody reads its output, or it does not end. This is the exit code.
    GivenUp(u8),
    /// The connection is gone.
    Lost,
}

/// What is under way to and from a command.
pub struct Session {
    connection: Connection,
    signals: Signals,
    /// What the connection had no room for yet.
    out: Vec<u8>,
    /// How many more bytes of input may be under way.
    window: usize,
    input: Input,
    /// Output that was not printed yet, and how much of it was.
    shown: (bool, Vec<u8>, usize),
    /// How often the user has asked for the end.
    stops: u32,
    /// The guest takes an identity before the command runs.
    awaits_identity: bool,
    /// The machine has ended: when to end, though not all was printed.
    leaves: Option<Instant>,
}

/// What poll(2) found: news on the connection, room there, input, room for output, signals, a change of the terminal's
/// foreground.
struct Ready([bool; 6]);

impl Session {
    /// A command that was started on `connection`, and gets `input`.
    pub fn new(connection: Connection, signals: Signals, input: Input) -> Self {
        let shown = (false, Vec::new(), 0);
        let (out, window) = (Vec::new(), WINDOW);
        let awaits_identity = false;
        Self {
            connection,
            signals,
            out,
            window,
            input,
            shown,
            stops: 0,
            awaits_identity,
            leaves: None,
        }
    }

    /// The command's request came after one for an identity.
    pub fn after_identity(self) -> Self {
        Self { awaits_identity: true, ..self }
    }

    /// Runs it to its end, or, once `stop` is set, to the end of what it has printed.
    pub fn run(mut self, stop: Option<&StopFlag>) -> Result<End> {
        self.connection.stream.set_nonblocking(true)?;
        loop {
            if let Some(end) = self.take_frames()? {
                return Ok(end);
            }
            if self.leaves.is_none() && stop.is_some_and(StopFlag::is_set) {
                self.leaves = Some(Instant::now() + FAREWELL);
            }
            self.pass_on_input();
            let Some(Ready([news, room, input, output, signals, changed])) = self.wait(stop)?
            else {
                return Ok(End::Lost);
            };
            self.input.check(changed);
            if signals && let Some(end) = self.pass_on_signals() {
                return Ok(end);
            }
            if output && let Some(end) = self.show()? {
                return Ok(end);
            }
            if input {
                self.input.read();
            }
            if room || !self.out.is_empty() {
                self.flush()?;
            }
            if news && !self.connection.receive()? {
                return Ok(End::Lost);
            }
        }
    }

    fn shows_all(&self) -> bool {
        self.shown.1.len() == self.shown.2
    }

    /// Waits for something to do; `None` when it is time to leave.
    fn wait(&self, stop: Option<&StopFlag>) -> Result<Option<Ready>> {
        let stream = &self.connection.stream;
        // What was printed is waited for before more is read: the guest's command waits, too.
        let news = if self.shows_all() { PollFlags::IN } else { PollFlags::empty() };
        let room = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let goes_on = self.leaves.is_none();
        let source = self.input.source().filter(|_| goes_on);
        let shows = !self.shows_all();
        let (stdout, stderr) = (stdout(), stderr());
        let shown = if self.shown.0 { stderr.as_fd() } else { stdout.as_fd() };
        // What is not waited for is replaced by the signals, without events: poll(2) always reports an end.
        let entry = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(self.signals.wake(), PollFlags::empty()),
        };
        let mut fds = [
            entry((!(news | room).is_empty()).then(|| stream.as_fd()), news | room),
            entry(source, PollFlags::IN),
            entry(shows.then_some(shown), PollFlags::OUT),
            entry(Some(self.signals.wake()), PollFlags::IN),
            entry(self.input.changed(), PollFlags::IN),
            entry(stop.filter(|_| goes_on).map(AsFd::as_fd), PollFlags::IN),
        ];
        let left = match self.leaves {
            Some(_) if !shows => Some(Duration::ZERO),
            leaves => leaves.map(|at| at.saturating_duration_since(Instant::now())),
        };
        let left = left.and_then(|left| left.try_into().ok());
        match poll(&mut fds, left.or(self.input.patience()).as_ref()) {
            Err(Errno::INTR) => {
                return Ok(Some(Ready([false, false, false, false, true, false])));
            }
            Ok(0) if !goes_on => return Ok(None),
            done => done?,
        };
        let [stream, input, output, signals, changed, _] = fds.map(|fd| fd.revents());
        let gone = stream.intersects(PollFlags::HUP | PollFlags::ERR);
        let news = stream.contains(PollFlags::IN) || gone && !news.is_empty();
        let room = stream.contains(PollFlags::OUT);
        let some = |used: bool, events: PollFlags| used && !events.is_empty();
        let (input, output) = (some(source.is_some(), input), some(shows, output));
        let changed = some(self.input.changed().is_some(), changed);
        Ok(Some(Ready([news, room, input, output, !signals.is_empty(), changed])))
    }

    /// Acts on the frames that are there, up to output that has to be shown. Returns the end when it has come.
    fn take_frames(&mut self) -> Result<Option<End>> {
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
                (Kind::Done, []) if self.awaits_identity => self.awaits_identity = false,
                (Kind::Status, [0, status]) => return Ok(Some(End::Status(*status))),
                (Kind::Status, [1, signal]) => {
                    return Ok(Some(End::Status(BY_SIGNAL.wrapping_add(*signal))));
                }
                (Kind::Failure, _) => {
                    let (code, reason) = failure(payload);
                    logger::print_message(reason);
                    return Ok(Some(End::Status(code)));
                }
                _ => bail!("what answers in the guest is no agent of tinyvmm's"),
            }
        }
        Ok(None)
    }

    /// Prints as much as can be printed without waiting. Returns the end if nobody reads it any more.
    fn show(&mut self) -> Result<Option<End>> {
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
            Err(Errno::PIPE) => return Ok(Some(End::GivenUp(BY_SIGNAL + libc::SIGPIPE as u8))),
            Err(error) => return Err(error).context("cannot print the command's output"),
        }
        Ok(None)
    }

    /// Passes on input, or its end.
    fn pass_on_input(&mut self) {
        if self.out.is_empty()
            && let Some(bytes) = self.input.next(self.window.min(PIECE))
        {
            put(&mut self.out, Kind::Input, &bytes);
            self.window -= bytes.len();
        }
    }

    /// Passes on the terminal's size.
    pub fn send_size(&mut self) {
        if let Ok(now) = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())) {
            put(&mut self.out, Kind::Size, &size(now.ws_row, now.ws_col));
        }
    }

    /// Passes on signals; returns the end if the user has asked for it often enough.
    fn pass_on_signals(&mut self) -> Option<End> {
        for number in self.signals.take() {
            if i32::from(number) == libc::SIGWINCH && self.signals.has_terminal {
                self.send_size();
                continue;
            }
            self.stops += u32::from([libc::SIGINT, libc::SIGTERM].contains(&number.into()));
            if self.stops >= ENOUGH {
                return Some(End::GivenUp(BY_SIGNAL + number));
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
            Err(error) => return Err(error).context(LOST),
        }
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind())
}

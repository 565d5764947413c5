//! A connection: one request, and what follows it.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use agent_wire::{Exec, HELLO, Identity, Inbound, Kind, WINDOW, parse_size, put};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, waitpid};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::identity;
use crate::program::Program;

/// Most bytes of output in a frame, and that wait for the command.
const PIECE: usize = 32 << 10;
/// What is read of a stream that processes still have open when the program has ended.
const REST: usize = 1 << 20;
/// How often a kernel without pidfd_open(2), before Linux 5.3, is asked for the program's end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The command's end of the connection is gone, or it speaks another protocol.
struct Gone;

impl From<Errno> for Gone {
    fn from(_: Errno) -> Self {
        Self
    }
}

/// What has come of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// This exit code was reported.
    Code(u8),
    /// It was lost before there was a request.
    Nothing,
    /// It was lost later.
    Lost,
}

/// Serves the connection `socket` to its end.
pub fn serve(socket: &OwnedFd) -> Served {
    let mut connection = Connection {
        socket,
        inbound: Inbound::default(),
        out: Vec::with_capacity(4 * PIECE),
        served: false,
    };
    connection.out.extend(HELLO);
    match connection.run() {
        Err(Gone) if connection.served => Served::Lost,
        Err(Gone) => Served::Nothing,
        Ok(code) => Served::Code(code),
    }
}

struct Connection<'a> {
    socket: &'a OwnedFd,
    inbound: Inbound,
    /// What the socket had no room for yet.
    out: Vec<u8>,
    /// There was a request.
    served: bool,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<u8, Gone> {
        self.flush()?;
        loop {
            let (kind, code) = self.serve_request()?;
            // A guest takes its identity before it runs a command.
            if (kind, code) != (Kind::Identity, 0) {
                return Ok(code);
            }
        }
    }

    /// Serves the next request. Returns what it was and the exit code that was reported.
    fn serve_request(&mut self) -> Result<(Kind, u8), Gone> {
        let (kind, payload) = loop {
            if let Some((kind, payload)) = self.inbound.next().map_err(|_| Gone)? {
                break (kind, payload.to_vec());
            }
            self.receive()?;
        };
        self.served = true;
        let wrong = || {
            Err((
                125,
                String::from("the agent does not know this request: install that of this tinyvmm"),
            ))
        };
        let done = match kind {
            Kind::Exec => match Exec::decode(&payload)
                .map_or_else(wrong, |request| Program::start(&request))
            {
                Ok(program) => return Session::new(program).run(self).map(|code| (kind, code)),
                Err(failure) => Err(failure),
            },
            Kind::Identity => match Identity::decode(&payload) {
                Some(identity) => identity::take(&identity).map_err(|why| (125, why)),
                None => wrong().map(|_: Program| ()),
            },
            Kind::Ready => Ok(()),
            _ => return Err(Gone),
        };
        let code = match done {
            Ok(()) => {
                put(&mut self.out, Kind::Done, &[]);
                0
            }
            Err((code, why)) => {
                put(&mut self.out, Kind::Failure, &[&[code], why.as_bytes()].concat());
                code
            }
        };
        self.flush().map(|()| (kind, code))
    }

    /// Receives what there is; waits only if the socket does.
    fn receive(&mut self) -> Result<(), Gone> {
        let room = self.inbound.room();
        match recv(self.socket, room, RecvFlags::empty()) {
            Ok((1.., len)) => self.inbound.add(len),
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => return Err(Gone),
        }
        Ok(())
    }

    /// Sends what is waiting, as far as the socket takes it.
    fn flush(&mut self) -> Result<(), Gone> {
        while !self.out.is_empty() {
            match send(self.socket, &self.out, SendFlags::NOSIGNAL) {
                Ok(len) => _ = self.out.drain(..len),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

/// A program that runs, and what is under way to and from it.
struct Session {
    program: Program,
    /// Input that the program has not taken.
    queue: Vec<u8>,
    /// No more input follows the queue.
    at_end: bool,
    status: Option<WaitStatus>,
    /// How many more bytes of each stream are read once the program has ended.
    rest: [usize; 2],
    piece: Vec<u8>,
}

/// What poll(2) found: on the socket input and room, room for the program's input, output and errors, the end.
struct Ready([bool; 5]);

/// An entry for poll(2); a descriptor that is not there is replaced by the socket, without events.
fn entry<'a>(fd: Option<&'a OwnedFd>, socket: BorrowedFd<'a>, flags: PollFlags) -> PollFd<'a> {
    match fd {
        Some(fd) => PollFd::from_borrowed_fd(fd.as_fd(), flags),
        None => PollFd::from_borrowed_fd(socket, PollFlags::empty()),
    }
}

impl Session {
    fn new(program: Program) -> Self {
        let (queue, piece) = (Vec::with_capacity(WINDOW), vec![0; PIECE]);
        Self { program, queue, at_end: false, status: None, rest: [REST; 2], piece }
    }

    fn run(mut self, connection: &mut Connection) -> Result<u8, Gone> {
        let done = self.work(connection);
        if done.is_err() && self.status.is_none() {
            // As a terminal that hangs up.
            self.program.signal(Signal::HUP.as_raw() as u8);
            self.program.signal(Signal::CONT.as_raw() as u8);
        }
        done
    }

    fn work(&mut self, connection: &mut Connection) -> Result<u8, Gone> {
        ioctl_fionbio(connection.socket, true)?;
        let ours = [&self.program.input, &self.program.output, &self.program.errors];
        ours.into_iter().flatten().try_for_each(|fd| ioctl_fionbio(fd, true))?;
        let end = pidfd_open(self.program.pid, PidfdFlags::empty()).ok();
        loop {
            // Frames may be there that came with the request.
            while let Some((kind, payload)) = connection.inbound.next().map_err(|_| Gone)? {
                self.take(kind, payload)?;
            }
            let Ready([news, room, input, output, errors]) = self.wait(connection, end.as_ref())?;
            if news {
                connection.receive()?;
            }
            if input {
                self.feed(&mut connection.out);
            }
            // The status before the streams: what they have then is all that the program has written.
            if self.status.is_none()
                && let Some((_, status)) = waitpid(Some(self.program.pid), WaitOptions::NOHANG)?
            {
                self.status = Some(status);
            }
            let ended = self.status.is_some();
            self.pass_on(0, output || ended, &mut connection.out);
            self.pass_on(1, errors || ended, &mut connection.out);
            if room || !connection.out.is_empty() {
                connection.flush()?;
            }
            let open = self.program.output.is_some() || self.program.errors.is_some();
            if let Some(status) = self.status.filter(|_| !open) {
                return self.finish(status, connection);
            }
        }
    }

    fn wait(&self, connection: &Connection, end: Option<&OwnedFd>) -> Result<Ready, Gone> {
        let socket = connection.socket.as_fd();
        let has_room = connection.out.len() < PIECE;
        let (program, pid_is_there) = (&self.program, self.status.is_none());
        let input = program.input.as_ref().filter(|_| !self.queue.is_empty() || self.at_end);
        let output = program.output.as_ref().filter(|_| has_room);
        let errors = program.errors.as_ref().filter(|_| has_room);
        let end = end.filter(|_| pid_is_there);
        let sending = if connection.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN | sending),
            entry(input, socket, PollFlags::OUT),
            entry(output, socket, PollFlags::IN),
            entry(errors, socket, PollFlags::IN),
            entry(end, socket, PollFlags::IN),
        ];
        // Once the program has ended the streams are read to their ends, as far as the socket takes it.
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let patience = match (pid_is_there, end) {
            (false, _) if has_room => Some(&at_once),
            (true, None) => Some(&LOOK),
            _ => None,
        };
        match poll(&mut fds, patience) {
            Err(Errno::INTR) => return Ok(Ready([false; 5])),
            done => done?,
        };
        let events = fds.map(|fd| fd.revents());
        let is_there = [true, input.is_some(), output.is_some(), errors.is_some(), true];
        let [socket, input, output, errors, _] =
            core::array::from_fn(|at| if is_there[at] { events[at] } else { PollFlags::empty() });
        let some = |events: PollFlags| !events.is_empty();
        let news = socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        Ok(Ready([news, socket.contains(PollFlags::OUT), some(input), some(output), some(errors)]))
    }

    /// Takes a frame of the command's.
    fn take(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Gone> {
        match kind {
            Kind::Input if payload.is_empty() => self.at_end = true,
            // It never sends more than there is room for.
            Kind::Input if self.queue.len() + payload.len() > WINDOW => return Err(Gone),
            Kind::Input => self.queue.extend(payload),
            Kind::Size => {
                let (ws_row, ws_col) = parse_size(payload).ok_or(Gone)?;
                if let Some(terminal) = &self.program.terminal {
                    let _ = tcsetwinsize(
                        terminal,
                        Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 },
                    );
                }
            }
            Kind::Signal => {
                let [number] = *payload else { return Err(Gone) };
                if self.status.is_none() {
                    self.program.signal(number);
                }
            }
            _ => return Err(Gone),
        }
        Ok(())
    }

    /// Gives the program input that waits, and reports how much it took. What nobody reads any more is dropped.
    fn feed(&mut self, out: &mut Vec<u8>) {
        let Some(input) = &self.program.input else { return };
        let taken = match rustix::io::write(input, &self.queue) {
            _ if self.queue.is_empty() => 0,
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => {
                self.program.input = None;
                self.queue.len()
            }
        };
        self.queue.drain(..taken);
        if taken > 0 {
            put(out, Kind::Taken, &(taken as u32).to_le_bytes());
        }
        // A terminal has no end, but while its other side is there.
        if self.at_end && self.queue.is_empty() {
            self.program.input = None;
        }
    }

    /// Passes on what the stream has, and forgets it at its end.
    fn pass_on(&mut self, index: usize, ready: bool, out: &mut Vec<u8>) {
        let (stream, kind) = match index {
            0 => (&mut self.program.output, Kind::Output),
            _ => (&mut self.program.errors, Kind::Errors),
        };
        let Some(fd) = stream.as_ref().filter(|_| ready && out.len() < PIECE) else { return };
        let ended = self.status.is_some();
        match rustix::io::read(fd, &mut self.piece) {
            Ok(len @ 1..) => {
                put(out, kind, &self.piece[..len]);
                if ended {
                    self.rest[index] = self.rest[index].saturating_sub(len);
                }
                if self.rest[index] == 0 {
                    *stream = None;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !ended => {}
            // A terminal without programs fails.
            _ => *stream = None,
        }
    }

    /// Reports the status, and waits until it is sent. Returns it as an exit code: that of a signal is 128 more.
    fn finish(&self, status: WaitStatus, connection: &mut Connection) -> Result<u8, Gone> {
        let ended = match status.terminating_signal() {
            Some(signal) => [1, signal as u8],
            None => [0, status.exit_status().unwrap_or(0) as u8],
        };
        put(&mut connection.out, Kind::Status, &ended);
        ioctl_fionbio(connection.socket, false)?;
        connection.flush()?;
        let [is_signal, number] = ended;
        Ok(number.wrapping_add(128 * is_signal))
    }
}

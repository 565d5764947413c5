//! The host's side of the console: output is written in batches, input is passed to the guest.
//!
//! vCPUs put bytes into a bounded buffer; one thread writes it out and feeds input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guest_report::Reported;
use super::held::Held;
use super::output::Output;
use super::serial::SerialPort;
use crate::bus::BusDevice;
use crate::coalesced::{self, CoalescedWrites};
use crate::vcpu::Buses;
use crate::worker::{StopFlag, ThreadKind, Work, borrow};

/// Most bytes of a write: a pipe that polls writable takes this many without blocking (pipe(7)).
const CHUNK: usize = 4096;
/// How long the first byte waits for more, so that a line is one write.
const GATHER: Duration = Duration::from_millis(1);
/// The longest delay of output while KVM collects it and the guest does not exit.
const LATEST: Duration = Duration::from_millis(20);
/// KVM collects output once this many bytes come at a time,
const MANY: usize = 16;
/// and until there is none for this long.
const SILENCE: Duration = Duration::from_millis(100);
/// The interval of checks for room in the guest's FIFO.
const SOON: Duration = Duration::from_millis(5);
/// Time to write remaining output at the machine's end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What to do with a byte of input.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyAction {
    /// Pass this byte to the guest.
    Guest(u8),
    /// Show this text on the console; the guest does not get it.
    Show(&'static str),
    /// Nothing: the byte was the program's.
    Ignore,
}

/// Input under the program's control: a terminal, which may be in the background for a time, and some of whose keys are
/// the program's. All methods are called on the console's thread.
pub trait Keyboard: Send {
    /// Whether the process is in the foreground. Otherwise nothing is read.
    fn is_ours(&self) -> bool;
    /// A descriptor that is readable when that may have changed.
    fn changed(&self) -> BorrowedFd<'_>;
    /// The longest time before the next call of [`Self::check`].
    fn patience(&self) -> Option<Duration>;
    /// Checks whether the process is in the foreground; `changed` says whether the descriptor was readable.
    fn check(&mut self, changed: bool);
    /// Reads input from `source`, the terminal.
    fn read(&mut self, source: &File, bytes: &mut [u8]) -> io::Result<usize>;
    /// What to do with a byte that was read.
    fn input(&mut self, byte: u8) -> KeyAction;
}

/// The connections of a console; outlives resets of the machine.
pub struct Console {
    output: Output,
    /// The destination of output; `None` once it is gone.
    sink: Option<File>,
    /// The source of input; `None` at its end.
    source: Option<File>,
    /// A socket that gets the output as well, and is another source of input; `None` once it is gone.
    copy: Option<File>,
    /// With a keyboard, input is read even while the guest's FIFO is full.
    keyboard: Option<Box<dyn Keyboard>>,
    /// Input that waits for room in the guest's FIFO.
    typed: Vec<u8>,
    /// Input is for a command: it waits until that reads the console, and its end is passed on as Ctrl-D.
    for_command: bool,
    /// Output that waits for that, too, or for an end without a status, and is written before the rest.
    held: Held,
}

/// Ctrl-D, which ends the input of a terminal in line mode at the start of a line.
const END_OF_INPUT: u8 = 4;

impl Console {
    /// A console that is not connected yet. With `discard` it never is: output is dropped.
    pub fn new(discard: bool) -> Result<Self> {
        Ok(Self {
            output: Output::new(discard)?,
            sink: None,
            source: None,
            copy: None,
            keyboard: None,
            typed: Vec::new(),
            for_command: false,
            held: Held::default(),
        })
    }

    /// Connects the console: output goes to `sink`, input comes from `source`, if there is one.
    pub fn connect(&mut self, sink: File, source: Option<File>) {
        self.sink = Some(sink);
        self.source = source;
    }

    /// Has `copy`, a non-blocking socket, get the output as well and be another source of input. The output follows the
    /// sink's pace: what `copy` has no room for then is lost to it. Without a sink it follows that of `copy`.
    pub fn copy_to(&mut self, copy: File) {
        self.copy = Some(copy);
    }

    /// Puts the input under the control of `keyboard`.
    pub fn set_keyboard(&mut self, keyboard: Box<dyn Keyboard>) {
        self.keyboard = Some(keyboard);
    }

    /// Has input wait until the guest's command reads it ([`super::guest_report::READS_CONSOLE`]), and its end passed on
    /// as Ctrl-D. With `holds` output waits, too: the last of it is written then, or when the machine ends without a
    /// status.
    pub fn feed_command(&mut self, holds: bool) {
        (self.for_command, self.held.waits) = (true, holds);
    }

    /// Keeps the output that there is, for which the copy need not wait.
    fn hold(&mut self) {
        let waits = self.held.waits && !self.output.is_empty();
        if waits {
            let bytes = self.output.front(usize::MAX);
            self.output.written(bytes.len());
            let _ = self.copy.as_mut().map(|copy| copy.write(&bytes));
            self.held.add(&bytes);
        }
    }

    /// The guest's side of the output.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Writes waiting output, at most `CHUNK` bytes.
    fn write_out(&mut self) {
        if let Some(sink) = self.sink.as_mut().filter(|_| self.held.is_due()) {
            return self.held.show(sink, CHUNK);
        }
        let bytes = self.output.front(CHUNK);
        let written = match (&mut self.sink, &mut self.copy) {
            (Some(sink), copy) => sink.write(&bytes).inspect(|count| {
                // Not retried: nobody waits for the copy's reader.
                let _ = copy.as_mut().map(|copy| copy.write(&bytes[..*count]));
            }),
            (None, Some(copy)) => copy.write(&bytes),
            (None, None) => return,
        };
        match written {
            Ok(count) => self.output.written(count),
            Err(error) if is_retryable(&error) => {}
            Err(error) => {
                if self.sink.take().is_some() {
                    log::warn!("console: {error}: its output is dropped from now on");
                } else {
                    self.copy = None;
                }
                if self.copy.is_none() {
                    self.output.close();
                }
            }
        }
    }

    /// What sets the pace of the output.
    fn pacer(&self) -> Option<&File> {
        self.sink.as_ref().or(self.copy.as_ref())
    }

    fn pending(&self) -> bool {
        let has_some = self.held.is_due() || !self.held.waits && !self.output.is_empty();
        self.pacer().is_some() && has_some
    }

    /// Reads input of the copy's other end into `typed`.
    fn read_copy(&mut self) {
        let mut bytes = [0; 64];
        match self.copy.as_mut().map(|copy| copy.read(&mut bytes)) {
            Some(Ok(len)) if len > 0 => self.typed.extend(&bytes[..len]),
            Some(Err(error)) if is_retryable(&error) => {}
            _ => self.copy = None,
        }
    }

    /// Reads input into `typed`.
    fn read_in(&mut self) {
        let mut bytes = [0; 64];
        let Some(source) = &mut self.source else { return };
        let read = match &mut self.keyboard {
            Some(keyboard) => keyboard.read(source, &mut bytes),
            None => source.read(&mut bytes),
        };
        let bytes = match read {
            Ok(len) if len > 0 => &bytes[..len],
            Err(error) if is_retryable(&error) => return,
            // The end of a pipe or file, or a terminal that is gone: no more input.
            _ => {
                self.source = None;
                if self.for_command {
                    // At the start of a line one Ctrl-D ends input; elsewhere a first one passes the incomplete line
                    // on.
                    self.typed.extend([END_OF_INPUT; 2]);
                }
                return;
            }
        };
        let Some(keyboard) = &mut self.keyboard else {
            self.typed.extend(bytes);
            return;
        };
        for byte in bytes {
            match keyboard.input(*byte) {
                KeyAction::Guest(byte) if self.typed.len() < CHUNK => self.typed.push(byte),
                KeyAction::Guest(_) | KeyAction::Ignore => {} // the guest does not read: dropped
                KeyAction::Show(text) => text.bytes().for_each(|byte| self.output.push(byte)),
            }
        }
    }

    /// Passes as much input to the guest as its FIFO takes; true if nothing is left.
    fn feed(&mut self, serial: &Mutex<SerialPort>, reported: &Reported) -> bool {
        if self.for_command && !reported.reads_console() {
            return self.typed.is_empty();
        }
        // A vCPU may hold the port while it waits for this thread to write output, so never wait for the port.
        if !self.typed.is_empty()
            && let Ok(mut port) = serial.try_lock()
        {
            let taken = port.receive(&self.typed);
            self.typed.drain(..taken);
        }
        self.typed.is_empty()
    }
}

/// The thread that serves a console while a machine runs.
pub struct ConsoleWork {
    /// The connections of the console.
    pub console: Console,
    /// The guest's serial port.
    serial: Arc<Mutex<SerialPort>>,
    /// Writes to the port may be collected there.
    buses: Buses,
    /// What the guest has reported.
    reported: Reported,
    /// When the guest last sent output.
    sent: Instant,
    /// Processor time of this work's threads, without the present one.
    pub cpu_time: Duration,
}

impl Work for ConsoleWork {
    fn name(&self) -> String {
        "console".into()
    }

    fn kind(&self) -> ThreadKind {
        ThreadKind::Console
    }

    fn cpu_time(&mut self) -> Option<&mut Duration> {
        Some(&mut self.cpu_time)
    }

    fn run(&mut self, stop: &StopFlag) {
        while !stop.is_set() {
            let fed = self.console.feed(&self.serial, &self.reported);
            self.console.held.waits &= !self.reported.reads_console();
            self.console.hold();
            self.wait(stop, fed);
        }
        self.console.hold();
        self.console.held.conclude(&self.reported);
        // The remaining output; a reader that does not read cannot hold up the end for ever.
        let deadline = Instant::now() + FAREWELL;
        while self.console.pending() && Instant::now() < deadline {
            if writable(self.console.pacer(), Duration::from_millis(50)) {
                self.console.write_out();
            }
        }
    }
}

impl ConsoleWork {
    /// Connects `console` with `serial`, whose writes may be collected in `buses`.
    pub fn new(
        console: Console,
        serial: Arc<Mutex<SerialPort>>,
        buses: Buses,
        reported: Reported,
    ) -> Self {
        let cpu_time = Duration::ZERO;
        Self { console, serial, buses, reported, sent: Instant::now(), cpu_time }
    }

    /// Executes collected writes, and has KVM collect while there are many.
    fn collect(&mut self, more: bool) {
        let Some(coalesced) = self.buses.coalesced.clone() else { return };
        let waited = self.execute_collected(&coalesced);
        if more || waited != Some(false) {
            self.sent = Instant::now();
        }
        if !coalesced.is_collecting() && more && self.console.output.front(MANY).len() == MANY {
            coalesced.collect(true);
        } else if coalesced.is_collecting() && self.sent.elapsed() > SILENCE {
            coalesced.collect(false);
            // Writes that came meanwhile must not stay in the ring: nothing polls it from now on.
            if self.execute_collected(&coalesced).is_none() {
                coalesced.collect(true);
            }
        }
    }

    /// Executes collected writes to the serial port; returns whether there were any. `None` instead of waiting: a vCPU
    /// that holds the port, or drains the ring, may itself wait for this thread to write output.
    fn execute_collected(&self, coalesced: &CoalescedWrites) -> Option<bool> {
        let mut port = self.serial.try_lock().ok()?;
        // Only this thread pushes while it holds the port.
        let room = self.console.output.has_room_for(coalesced::RING_BYTES);
        room.then(|| coalesced.try_drain(|write| port.write(0, write.data()))).flatten()
    }

    /// Waits until there is something to do, and does it.
    fn wait(&mut self, stop: &StopFlag, fed: bool) {
        let console = &self.console;
        let (pending, output) = (console.pending(), console.output.clone());
        let nothing = stop.as_fd();
        let pacer = console.pacer().filter(|_| pending).map(File::as_fd);
        // Input from a pipe waits until the guest has room; a terminal is always read, for the program's keys.
        let keyboard = console.keyboard.as_deref();
        let listen = keyboard.map_or(fed, Keyboard::is_ours);
        let source = console.source.as_ref().filter(|_| listen).map(File::as_fd);
        let copy = console.copy.as_ref().filter(|_| fed).map(File::as_fd);
        let watch = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(nothing, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(nothing, PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(output.filled()), PollFlags::IN),
            watch(pacer, PollFlags::OUT),
            watch(source, PollFlags::IN),
            watch(keyboard.map(Keyboard::changed), PollFlags::IN),
            watch(copy, PollFlags::IN),
        ];
        let collecting = self.buses.coalesced.as_ref().is_some_and(|writes| writes.is_collecting());
        let tick = collecting.then_some(LATEST);
        let timeout = if fed { tick } else { Some(SOON) };
        let timeout = timeout.or(keyboard.and_then(Keyboard::patience));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An error is EINTR: the caller checks `stop` and polls again.
        let _ = poll(&mut fds, timeout.as_ref());
        let ready = fds.map(|fd| !fd.revents().is_empty());
        if ready[1] {
            let _ = output.filled().read();
            thread::sleep(GATHER);
        }
        if let Some(keyboard) = &mut self.console.keyboard {
            keyboard.check(ready[4]);
        }
        self.collect(ready[1]);
        if ready[2] && pending {
            self.console.write_out();
        }
        if ready[3] && listen {
            self.console.read_in();
        }
        if ready[5] && fed {
            self.console.read_copy();
        }
    }
}

/// Whether the call that failed with `error` is to be tried again.
pub(super) fn is_retryable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn writable(sink: Option<&File>, timeout: Duration) -> bool {
    let Some(sink) = sink else { return false };
    let mut fds = [PollFd::from_borrowed_fd(sink.as_fd(), PollFlags::OUT)];
    let timeout = Timespec::try_from(timeout).ok();
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn socket() -> (UnixStream, File) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, File::from(OwnedFd::from(theirs)))
    }

    #[test]
    fn a_copy_gets_what_the_sink_gets_and_goes_on_without_it() {
        let mut console = Console::new(false).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut ours, copy) = socket();
        console.connect(File::from(OwnedFd::from(writer)), None);
        console.copy_to(copy);
        let mut bytes = [0; 3];
        for gone in [false, true] {
            b"abc".iter().for_each(|byte| console.output.push(*byte));
            // The first write finds that nobody reads the sink, the second is the copy's alone.
            for _ in 0..=usize::from(gone) {
                console.write_out();
            }
            ours.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"abc");
            if !gone {
                reader.read_exact(&mut bytes).unwrap();
                assert_eq!(&bytes, b"abc");
                drop(std::mem::replace(&mut reader, io::pipe().unwrap().0));
            }
        }
        ours.write_all(b"xyz").unwrap();
        console.read_copy();
        assert_eq!(console.typed, b"xyz");
        drop(ours);
        console.read_copy();
        assert!(console.copy.is_none());
    }

    #[test]
    fn a_copy_that_nobody_reads_holds_nothing_up() {
        let mut console = Console::new(false).unwrap();
        let (_unread, copy) = socket();
        console.connect(File::create("/dev/null").unwrap(), None);
        console.copy_to(copy);
        for _ in 0..16 << 20 >> 12 {
            (0..CHUNK).for_each(|_| console.output.push(b'x'));
            console.write_out();
            assert!(console.output.is_empty());
        }
    }
}

//! The console's far side: what the guest prints goes out in batches, what the user types in.
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

use super::guest_report::InitRuns;
use super::output::Output;
use super::serial::SerialPort;
use crate::bus::BusDevice;
use crate::coalesced::{self, CoalescedWrites};
use crate::vcpu::Buses;
use crate::worker::{StopFlag, ThreadKind, Work, borrow};

/// Most bytes a write: what a pipe that polls writable takes without blocking (pipe(7)).
const CHUNK: usize = 4096;
/// How long the first byte waits for others, so that a line is one write.
const GATHER: Duration = Duration::from_millis(1);
/// How late may be what the guest sends, if it does not exit.
const LATEST: Duration = Duration::from_millis(20);
/// From so many bytes at once on, KVM collects what the guest sends,
const MANY: usize = 16;
/// until it has sent nothing for this long.
const SILENCE: Duration = Duration::from_millis(100);
/// How soon to look again whether the guest's FIFO has room.
const SOON: Duration = Duration::from_millis(5);
/// How long output that is left may take at the machine's end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What becomes of a byte of input.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// The guest gets this byte.
    Guest(u8),
    /// The console shows this text, which is not the guest's.
    Show(&'static str),
    /// Nothing: it was for somebody else.
    Taken,
}

/// Input that the program looks after: a terminal, which may be others' for a time, and some of whose keys are the
/// program's. The console's thread calls all of it.
pub trait Keyboard: Send {
    /// Whether what is typed comes to us now. Else nothing is read.
    fn is_ours(&self) -> bool;
    /// Readable when that may have changed.
    fn changed(&self) -> BorrowedFd<'_>;
    /// How long to wait at most before [`Self::check`] is called.
    fn patience(&self) -> Option<Duration>;
    /// Looks whether what is typed comes to us; `changed` was readable or not.
    fn check(&mut self, changed: bool);
    /// Reads what was typed from `source`, the terminal.
    fn read(&mut self, source: &File, bytes: &mut [u8]) -> io::Result<usize>;
    /// What becomes of a byte that was read.
    fn input(&mut self, byte: u8) -> Input;
}

/// What a console is connected to; outlives resets of the machine.
pub struct Console {
    output: Output,
    /// Where output goes; `None` once that place is gone.
    sink: Option<File>,
    /// Where input comes from; `None` at its end.
    source: Option<File>,
    /// With one, input is read also while the guest has no room for it.
    keyboard: Option<Box<dyn Keyboard>>,
    /// Input that the guest's FIFO has no room for yet.
    typed: Vec<u8>,
    /// Input is for a command: it waits until init runs, and its end is a Ctrl-D.
    for_command: bool,
}

/// What ends input that a terminal takes line by line, at the start of a line.
const END_OF_INPUT: u8 = 4;

impl Console {
    /// A console that is not connected yet. With `discard` it never will be: what the guest prints is dropped.
    pub fn new(discard: bool) -> Result<Self> {
        Ok(Self {
            output: Output::new(discard)?,
            sink: None,
            source: None,
            keyboard: None,
            typed: Vec::new(),
            for_command: false,
        })
    }

    /// Connects it: output goes to `sink`, input comes from `source`, if that is there.
    pub fn connect(&mut self, sink: File, source: Option<File>) {
        self.sink = Some(sink);
        self.source = source;
    }

    /// Has `keyboard` look after the input.
    pub fn set_keyboard(&mut self, keyboard: Box<dyn Keyboard>) {
        self.keyboard = Some(keyboard);
    }

    /// Has input wait until the guest's init runs; its end is a Ctrl-D.
    pub fn feed_command(&mut self) {
        self.for_command = true;
    }

    /// The guest's end.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Writes what is there, at most `CHUNK` bytes.
    fn write_out(&mut self) {
        let Some(sink) = &mut self.sink else { return };
        match sink.write(&self.output.front(CHUNK)) {
            Ok(count) => self.output.written(count),
            Err(error) if again(&error) => {}
            Err(error) => {
                log::warn!("console: {error}: its output is dropped from now on");
                self.sink = None;
                self.output.close();
            }
        }
    }

    fn pending(&self) -> bool {
        self.sink.is_some() && !self.output.is_empty()
    }

    /// Reads input.
    fn read_in(&mut self) {
        let mut bytes = [0; 64];
        let Some(source) = &mut self.source else { return };
        let read = match &mut self.keyboard {
            Some(keyboard) => keyboard.read(source, &mut bytes),
            None => source.read(&mut bytes),
        };
        let bytes = match read {
            Ok(len) if len > 0 => &bytes[..len],
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                return;
            }
            // The end of a pipe or file, or a terminal that is gone: no more input.
            _ => {
                self.source = None;
                if self.for_command {
                    // At the start of a line one ends it; elsewhere the first hands over what is there.
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
                Input::Guest(byte) if self.typed.len() < CHUNK => self.typed.push(byte),
                Input::Guest(_) | Input::Taken => {} // the guest does not read: typed in vain
                Input::Show(text) => text.bytes().for_each(|byte| self.output.push(byte)),
            }
        }
    }

    /// Gives the guest as much input as its FIFO takes; true if there is nothing left.
    fn feed(&mut self, serial: &Mutex<SerialPort>, init_runs: &InitRuns) -> bool {
        if self.for_command && !init_runs.get() {
            return self.typed.is_empty();
        }
        // A vCPU may hold the port while it waits for us to write output: never wait for it.
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
    /// What it is connected to.
    pub console: Console,
    /// The guest's serial port.
    serial: Arc<Mutex<SerialPort>>,
    /// Where writes to it may still wait.
    buses: Buses,
    /// Told by the guest.
    init_runs: InitRuns,
    /// When the guest last sent something.
    sent: Instant,
    /// That its threads have used, but for the one that runs.
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
            let fed = self.console.feed(&self.serial, &self.init_runs);
            self.wait(stop, fed);
        }
        // The guest's last words; a reader that does not read cannot hold up the end for ever.
        let deadline = Instant::now() + FAREWELL;
        while self.console.pending() && Instant::now() < deadline {
            if writable(self.console.sink.as_ref(), Duration::from_millis(50)) {
                self.console.write_out();
            }
        }
    }
}

impl ConsoleWork {
    /// Connects `console` with `serial`; writes to it may wait in `buses`.
    pub fn new(
        console: Console,
        serial: Arc<Mutex<SerialPort>>,
        buses: Buses,
        init_runs: InitRuns,
    ) -> Self {
        let cpu_time = Duration::ZERO;
        Self { console, serial, buses, init_runs, sent: Instant::now(), cpu_time }
    }

    /// Carries out writes that wait, and has KVM collect them while there are many.
    fn collect(&mut self, more: bool) {
        let Some(coalesced) = self.buses.coalesced.clone() else { return };
        let waited = self.carry_out(&coalesced);
        if more || waited != Some(false) {
            self.sent = Instant::now();
        }
        if !coalesced.is_collecting() && more && self.console.output.front(MANY).len() == MANY {
            coalesced.collect(true);
        } else if coalesced.is_collecting() && self.sent.elapsed() > SILENCE {
            coalesced.collect(false);
            // What came in the meantime must not stay there: nobody looks again.
            if self.carry_out(&coalesced).is_none() {
                coalesced.collect(true);
            }
        }
    }

    /// Carries out writes to the serial port that wait, and tells whether there were any. `None` if that would be to
    /// wait: a vCPU that holds the port, or its turn, may itself wait for us to write output.
    fn carry_out(&self, coalesced: &CoalescedWrites) -> Option<bool> {
        let mut port = self.serial.try_lock().ok()?;
        // Nobody else pushes while we hold the port.
        let room = self.console.output.has_room_for(coalesced::MOST_BYTES);
        room.then(|| coalesced.try_drain(|write| port.write(0, write.data()))).flatten()
    }

    /// Waits until something can be done, and does it.
    fn wait(&mut self, stop: &StopFlag, fed: bool) {
        let console = &self.console;
        let (pending, output) = (console.pending(), console.output.clone());
        let nothing = stop.as_fd();
        let sink = console.sink.as_ref().filter(|_| pending).map(File::as_fd);
        // A pipe waits until the guest has room; a terminal is read always, for the keys that are ours.
        let keyboard = console.keyboard.as_deref();
        let listen = keyboard.map_or(fed, Keyboard::is_ours);
        let source = console.source.as_ref().filter(|_| listen).map(File::as_fd);
        let watch = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(nothing, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(nothing, PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(output.filled()), PollFlags::IN),
            watch(sink, PollFlags::OUT),
            watch(source, PollFlags::IN),
            watch(keyboard.map(Keyboard::changed), PollFlags::IN),
        ];
        let collecting = self.buses.coalesced.as_ref().is_some_and(|writes| writes.is_collecting());
        let tick = collecting.then_some(LATEST);
        let timeout = if fed { tick } else { Some(SOON) };
        let timeout = timeout.or(keyboard.and_then(Keyboard::patience));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An error is EINTR: the caller looks at `stop` and comes again.
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
    }
}

/// Whether `error` only means that it has to be tried again.
fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn writable(sink: Option<&File>, timeout: Duration) -> bool {
    let Some(sink) = sink else { return false };
    let mut fds = [PollFd::from_borrowed_fd(sink.as_fd(), PollFlags::OUT)];
    let timeout = Timespec::try_from(timeout).ok();
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

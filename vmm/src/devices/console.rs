//! The console's far side: what the guest prints goes out in batches, what the user types in.
//!
//! vCPUs put bytes into a bounded buffer; one thread writes it out and feeds input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::serial::SerialPort;
use super::terminal::{HELP, Key, Keys, RawMode, in_background};
use crate::bus::lock;
use crate::config::ConsoleConfig;
use crate::event::{Event, EventSender, Halt};
use crate::worker::{StopFlag, Work, borrow};

/// Most bytes that wait to be written out.
const CAPACITY: usize = 64 << 10;
/// Most bytes a write: what a pipe that polls writable takes without blocking (pipe(7)).
const CHUNK: usize = 4096;
/// How long a full buffer may hold up the guest before bytes are dropped.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the first byte waits for others, so that a line is one write.
const GATHER: Duration = Duration::from_millis(1);
/// How long output that is left may take at the machine's end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The guest's end of the console.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    buffer: Mutex<Buffer>,
    /// Told when there is room again.
    drained: Condvar,
    /// Written when the buffer stops being empty.
    filled: EventFd,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The reader does not read: drop at once instead of waiting, until it does.
    stalled: bool,
    /// Nobody reads, ever.
    discard: bool,
}

impl Output {
    fn new(discard: bool) -> Result<Self> {
        let buffer = Mutex::new(Buffer { discard, ..Default::default() });
        let filled = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { buffer, drained: Condvar::new(), filled })))
    }

    /// An output that nobody reads.
    #[cfg(test)]
    pub fn discard() -> Self {
        Self::new(true).unwrap()
    }

    /// Takes a byte that the guest sends. Blocks for `PATIENCE` at most, and then drops.
    pub fn push(&self, byte: u8) {
        let mut buffer = lock(&self.0.buffer);
        if buffer.discard {
            return;
        }
        if buffer.bytes.len() >= CAPACITY && !buffer.stalled {
            let full = |b: &mut Buffer| b.bytes.len() >= CAPACITY;
            let waited = self.0.drained.wait_timeout_while(buffer, PATIENCE, full);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            buffer.stalled = full(&mut buffer);
            if buffer.stalled {
                log::warn!("nobody reads the console: its output is dropped until someone does");
            }
        }
        if buffer.bytes.len() < CAPACITY {
            buffer.bytes.push(byte);
            if buffer.bytes.len() == 1 {
                // Cannot fail: the counter is far from its limit.
                let _ = self.0.filled.write(1);
            }
        }
    }

    /// Takes `written` bytes, which have been written out, from the front.
    fn drain(&self, written: usize) {
        let mut buffer = lock(&self.0.buffer);
        buffer.bytes.drain(..written);
        if buffer.bytes.is_empty() && buffer.bytes.capacity() > CHUNK {
            buffer.bytes = Vec::new();
        }
        buffer.stalled = false;
        self.0.drained.notify_all();
    }
}

/// What a console is connected to; outlives resets of the machine.
pub struct Console {
    config: ConsoleConfig,
    connected: bool,
    output: Output,
    /// Where output goes; `None` once that place is gone.
    sink: Option<File>,
    /// Where input comes from; `None` at its end.
    source: Option<File>,
    raw: Option<RawMode>,
    keys: Keys,
    /// Input that the guest's FIFO has no room for yet.
    typed: Vec<u8>,
}

impl Console {
    /// A console that is not connected yet.
    pub fn new(config: ConsoleConfig) -> Result<Self> {
        Ok(Self {
            output: Output::new(config == ConsoleConfig::Off)?,
            config,
            connected: false,
            sink: None,
            source: None,
            raw: None,
            keys: Keys::default(),
            typed: Vec::new(),
        })
    }

    /// Opens what the console is to be connected to, once; a terminal becomes raw.
    pub fn connect(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.connected, true) {
            return Ok(());
        }
        match &self.config {
            ConsoleConfig::Off => {}
            ConsoleConfig::File(path) => {
                let created = File::create(path);
                self.sink = Some(created.with_context(|| format!("console {}", path.display()))?);
            }
            ConsoleConfig::Stdio => {
                // Copies, so that std's buffers stay out of the way.
                self.sink = Some(File::from(io::stdout().as_fd().try_clone_to_owned()?));
                if !in_background() {
                    self.source = io::stdin().as_fd().try_clone_to_owned().ok().map(File::from);
                }
                self.raw = RawMode::enter().context("cannot set up the terminal")?;
            }
        }
        Ok(())
    }

    /// The guest's end.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Writes what is there, at most `CHUNK` bytes.
    fn write_out(&mut self) {
        let chunk = {
            let buffer = lock(&self.output.0.buffer);
            let len = buffer.bytes.len().min(CHUNK);
            buffer.bytes[..len].to_vec()
        };
        let Some(sink) = &mut self.sink else { return };
        match sink.write(&chunk) {
            Ok(written) => self.output.drain(written),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                log::warn!("console: {error}: its output is dropped from now on");
                self.sink = None;
                lock(&self.output.0.buffer).discard = true;
                self.output.drain(chunk.len());
            }
        }
    }

    fn pending(&self) -> bool {
        self.sink.is_some() && !lock(&self.output.0.buffer).bytes.is_empty()
    }

    /// Reads what the user typed. The keys that are ours are for a terminal only.
    fn read_in(&mut self, events: &EventSender) {
        let mut bytes = [0; 64];
        let Some(source) = &mut self.source else { return };
        let bytes = match source.read(&mut bytes) {
            Ok(len) if len > 0 => &bytes[..len],
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                return;
            }
            // The end of a pipe or file, or a terminal that is gone: no more input.
            _ => {
                self.source = None;
                return;
            }
        };
        if self.raw.is_none() {
            self.typed.extend(bytes);
            return;
        }
        for key in bytes.iter().filter_map(|byte| self.keys.feed(*byte)) {
            match key {
                Key::Guest(byte) => self.typed.push(byte),
                Key::Quit => events.send(Event::Halt(Halt::Quit)),
                Key::Help => HELP.bytes().for_each(|byte| self.output.push(byte)),
            }
        }
    }

    /// Gives the guest as much input as its FIFO takes; true if there is nothing left.
    fn feed(&mut self, serial: &Mutex<SerialPort>) -> bool {
        // A vCPU may hold the port while it waits for us to write output: never wait for it.
        if !self.typed.is_empty()
            && let Ok(mut port) = serial.try_lock()
        {
            let len = port.room().min(self.typed.len());
            if len > 0 {
                port.receive(&self.typed[..len]);
                self.typed.drain(..len);
            }
        }
        self.typed.is_empty()
    }
}

/// The thread that serves a console while a machine runs.
pub struct ConsoleWork {
    /// What it is connected to.
    pub console: Console,
    /// The guest's serial port.
    pub serial: Arc<Mutex<SerialPort>>,
    /// Told when the user wants to quit.
    pub events: EventSender,
}

impl Work for ConsoleWork {
    fn name(&self) -> String {
        "console".into()
    }

    fn run(&mut self, stop: &StopFlag) {
        while !stop.is_set() {
            let fed = self.console.feed(&self.serial);
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
    /// Waits until something can be done, and does it.
    fn wait(&mut self, stop: &StopFlag, fed: bool) {
        let console = &self.console;
        let (pending, shared) = (console.pending(), console.output.0.clone());
        let nothing = stop.as_fd();
        let sink = console.sink.as_ref().filter(|_| pending).map(File::as_fd);
        let source = console.source.as_ref().filter(|_| fed).map(File::as_fd);
        let watch = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(nothing, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(nothing, PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(&shared.filled), PollFlags::IN),
            watch(sink, PollFlags::OUT),
            watch(source, PollFlags::IN),
        ];
        // The guest's FIFO has no room: look again soon.
        let soon = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        // An error is EINTR: the caller looks at `stop` and comes again.
        let _ = poll(&mut fds, (!fed).then_some(&soon));
        let ready = fds.map(|fd| !fd.revents().is_empty());
        if ready[1] {
            let _ = shared.filled.read();
            thread::sleep(GATHER);
        }
        if ready[2] && pending {
            self.console.write_out();
        }
        if ready[3] && fed {
            self.console.read_in(&self.events);
        }
    }
}

fn writable(sink: Option<&File>, timeout: Duration) -> bool {
    let Some(sink) = sink else { return false };
    let mut fds = [PollFd::from_borrowed_fd(sink.as_fd(), PollFlags::OUT)];
    let timeout = Timespec::try_from(timeout).ok();
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_nobody_reads_is_bounded_in_memory_and_time() {
        let output = Output::new(false).unwrap();
        let start = Instant::now();
        for _ in 0..4 * CAPACITY {
            output.push(b'x');
        }
        // One wait, not one for each byte.
        assert!(start.elapsed() < 20 * PATIENCE);
        assert_eq!(lock(&output.0.buffer).bytes.len(), CAPACITY);
        output.drain(1);
        output.push(b'y');
        assert_eq!(lock(&output.0.buffer).bytes.last(), Some(&b'y'));
    }
}

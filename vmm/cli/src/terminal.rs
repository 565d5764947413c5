//! The user's terminal: raw while keys go to the guest, always restored, and the keys that are tinyvmm's.
//!
//! A shell's `fg` and `bg` move the process to the foreground and back. In the background the terminal belongs to other
//! processes, and touching it would stop this one.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{block_signal, register_signal_handler, unblock_signal};

use crate::inbox::Waker;

use tinyvmm::devices::console::{KeyAction, Keyboard};
use tinyvmm::sync::lock;
use tinyvmm::worker::borrow;

/// The terminal's settings before raw mode; `None` while they are in force.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
/// Readable after a SIGCONT.
static CONTINUED: OnceLock<EventFd> = OnceLock::new();
/// The interval of checks in the background: bash's `fg` of a running job sends no signal.
const LOOK: Duration = Duration::from_millis(250);

/// How a terminal is while the process is in the foreground.
#[derive(Clone, Copy)]
pub enum Mode {
    /// Raw, but for these modes of its output. Some keys are tinyvmm's.
    Raw(OutputModes),
    /// As it was: lines, and all that is typed is input.
    Cooked,
}

impl Default for Mode {
    /// tinyvmm's messages end in a bare newline.
    fn default() -> Self {
        Self::Raw(OutputModes::OPOST | OutputModes::ONLCR)
    }
}

/// Standard input, where it is a terminal. Dropping it restores the terminal; so does a panic.
pub struct Terminal {
    mode: Mode,
    keys: EscapeKeys,
    waker: Waker,
    continued: &'static EventFd,
    /// The process is in the foreground: it reads the keys, and the terminal is raw.
    foreground: bool,
    looked: Instant,
}

extern "C" fn on_continue(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(continued) = CONTINUED.get() {
        let _ = continued.write(1); // write(2), which a handler may call
    }
}

impl Terminal {
    /// Has standard input be as `mode` says, now or once the process is in the foreground; `None` if it is no terminal. One
    /// that is attached to a machine has a key by which it leaves.
    pub fn open(waker: Waker, is_attached: bool, mode: Mode) -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let event = EventFd::new(EFD_NONBLOCK)?;
        let continued = CONTINUED.get_or_init(|| event);
        register_signal_handler(libc::SIGCONT, on_continue)?;
        restore_at_panic();
        let (keys, looked) = (EscapeKeys::new(is_attached), Instant::now());
        let mut terminal = Self { mode, keys, waker, continued, foreground: false, looked };
        terminal.look()?;
        Ok(Some(terminal))
    }

    /// Changes how it is.
    pub fn set_mode(&mut self, mode: Mode) -> io::Result<()> {
        self.mode = mode;
        self.look()
    }

    /// Whether it is raw while the process is in the foreground.
    pub fn is_raw(&self) -> bool {
        matches!(self.mode, Mode::Raw(_))
    }

    /// Enters raw mode if the process is in the foreground: a shell restores its own mode when it stops a job.
    fn look(&mut self) -> io::Result<()> {
        self.looked = Instant::now();
        without_being_stopped(|| {
            self.foreground = !in_background();
            match self.mode {
                Mode::Raw(output) if self.foreground => enter_raw_mode(output),
                _ => Ok(()),
            }
        })
    }
}

impl Keyboard for Terminal {
    fn is_ours(&self) -> bool {
        self.foreground
    }

    fn changed(&self) -> BorrowedFd<'_> {
        borrow(self.continued)
    }

    fn patience(&self) -> Option<Duration> {
        (!self.foreground).then_some(LOOK)
    }

    fn check(&mut self, continued: bool) {
        if continued {
            let _ = self.continued.read();
        }
        if continued || !self.foreground && self.looked.elapsed() >= LOOK {
            // Readers of the terminal find out if it is gone.
            let _ = self.look();
        }
    }

    fn read(&mut self, mut source: &File, bytes: &mut [u8]) -> io::Result<usize> {
        without_being_stopped(|| match source.read(bytes) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) && in_background() => {
                self.foreground = false;
                Err(io::ErrorKind::WouldBlock.into())
            }
            read => read,
        })
    }

    fn input(&mut self, byte: u8) -> KeyAction {
        match self.keys.feed(byte) {
            Some(Key::Guest(byte)) => KeyAction::Guest(byte),
            Some(Key::Help) if self.keys.is_attached => KeyAction::Show(HELP_ATTACHED),
            Some(Key::Help) => KeyAction::Show(HELP),
            Some(Key::Leave) => {
                self.waker.door();
                KeyAction::Ignore
            }
            Some(Key::Quit) => {
                self.waker.quit();
                KeyAction::Ignore
            }
            None => KeyAction::Ignore,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Standard input, a terminal, raw in both directions. Dropping it restores the terminal; so does a panic.
pub struct Raw(());

impl Raw {
    /// Enters raw mode. In the background that stops the process, until the user's shell continues it.
    pub fn enter() -> io::Result<Self> {
        restore_at_panic();
        enter_raw_mode(OutputModes::empty()).map(|()| Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore_at_panic() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        default_hook(panic);
    }));
}

/// Makes the terminal raw, but for `output`.
fn enter_raw_mode(output: OutputModes) -> io::Result<()> {
    let stdin = io::stdin();
    let mut saved = lock(&SAVED);
    let before = match &*saved {
        Some(before) => before.clone(),
        None => tcgetattr(&stdin)?,
    };
    let mut raw = before.clone();
    raw.make_raw();
    raw.output_modes |= output;
    *saved = Some(before);
    Ok(tcsetattr(&stdin, OptionalActions::Now, &raw)?)
}

fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        put_back(&before);
    }
}

/// Restores the terminal in a signal handler, which must not wait for a lock.
pub fn restore_now() {
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(before) = saved.take()
    {
        put_back(&before);
    }
}

fn put_back(before: &Termios) {
    without_being_stopped(|| {
        // In the background the shell has restored the terminal; its settings now are the shell's.
        if !in_background() {
            // Fails if the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    });
}

/// Runs `work` with the signals blocked by which a terminal stops background processes that touch it.
fn without_being_stopped<T>(work: impl FnOnce() -> T) -> T {
    let signals = [libc::SIGTTIN, libc::SIGTTOU];
    let blocked = signals.map(|signal| block_signal(signal).is_ok());
    let done = work();
    for (signal, _) in signals.into_iter().zip(blocked).filter(|(_, blocked)| *blocked) {
        let _ = unblock_signal(signal);
    }
    done
}

/// Whether the process is in the background: with SIGTTIN blocked even a read of no bytes fails then (n_tty_read,
/// drivers/tty/n_tty.c). Comparing group numbers fails in a PID namespace, which does not know the terminal's.
fn in_background() -> bool {
    rustix::io::read(io::stdin(), &mut [0u8; 0]) == Err(Errno::IO)
}

/// What Ctrl-A h shows.
pub const HELP: &str = "\n\
    Ctrl-A h  this help\n\
    Ctrl-A x  stop the machine\n\
    Ctrl-A a  send Ctrl-A to the guest\n";
/// The same for a terminal that is attached.
pub const HELP_ATTACHED: &str = "\n\
    Ctrl-A h  this help\n\
    Ctrl-A d  leave, the machine goes on\n\
    Ctrl-A x  stop the machine\n\
    Ctrl-A a  send Ctrl-A to the guest\n";

/// A key of the user's.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    /// A byte for the guest.
    Guest(u8),
    /// Stop the machine.
    Quit,
    /// Show [`HELP`].
    Help,
    /// Leave the machine that the terminal is attached to.
    Leave,
}

/// Finds tinyvmm's keys in the user's input: those after Ctrl-A.
pub struct EscapeKeys {
    escaped: bool,
    /// There is a key to leave.
    is_attached: bool,
}

impl EscapeKeys {
    const ESCAPE: u8 = 0x01;

    /// With `is_attached` there is a key to leave.
    pub fn new(is_attached: bool) -> Self {
        Self { escaped: false, is_attached }
    }

    /// The key that `byte` completes.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        if !self.escaped && byte == Self::ESCAPE {
            self.escaped = true;
            return None;
        }
        let escaped = std::mem::take(&mut self.escaped);
        Some(match byte {
            b'x' | b'X' if escaped => Key::Quit,
            b'h' | b'H' | b'?' if escaped => Key::Help,
            b'd' | b'D' if escaped && self.is_attached => Key::Leave,
            b'a' | b'A' if escaped => Key::Guest(Self::ESCAPE),
            _ => Key::Guest(byte),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_after_ctrl_a_are_ours() {
        let mut keys = EscapeKeys::new(false);
        let typed = b"ax\x01x\x01h\x01a\x01\x01z\x01d";
        let meant: Vec<Key> = typed.iter().filter_map(|byte| keys.feed(*byte)).collect();
        let expected = [
            Key::Guest(b'a'),
            Key::Guest(b'x'),
            Key::Quit,
            Key::Help,
            Key::Guest(1),
            Key::Guest(1),
            Key::Guest(b'z'),
            Key::Guest(b'd'),
        ];
        assert_eq!(meant, expected);
        let mut keys = EscapeKeys::new(true);
        assert_eq!(keys.feed(1), None);
        assert_eq!(keys.feed(b'd'), Some(Key::Leave));
    }
}

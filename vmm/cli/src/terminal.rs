//! The user's terminal: raw while keys are for the guest, always taken back, and the keys that are ours.
//!
//! A shell's `fg` and `bg` give it and take it away. In the background it is others', and touching it would stop the
//! process.

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

use tinyvmm::devices::console::{Input, Keyboard};
use tinyvmm::sync::lock;
use tinyvmm::worker::borrow;

/// The terminal's settings before ours; `None` while they are in force.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
/// Readable after a SIGCONT.
static CONTINUED: OnceLock<EventFd> = OnceLock::new();
/// How often to look in the background: bash's `fg` of a job that runs sends no signal.
const LOOK: Duration = Duration::from_millis(250);

/// Standard input, where it is a terminal. Dropping it restores the terminal; so does a panic.
pub struct Terminal {
    keys: Keys,
    waker: Waker,
    continued: &'static EventFd,
    /// What is typed comes to us, and the terminal is raw.
    foreground: bool,
    looked: Instant,
}

extern "C" fn on_continue(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(continued) = CONTINUED.get() {
        let _ = continued.write(1); // write(2), which a handler may call
    }
}

impl Terminal {
    /// Makes standard input raw, now or once it is ours; `None` if it is no terminal.
    pub fn open(waker: Waker) -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let event = EventFd::new(EFD_NONBLOCK)?;
        let continued = CONTINUED.get_or_init(|| event);
        register_signal_handler(libc::SIGCONT, on_continue)?;
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            default_hook(panic);
        }));
        let (keys, looked) = (Keys::default(), Instant::now());
        let mut terminal = Self { keys, waker, continued, foreground: false, looked };
        terminal.look()?;
        Ok(Some(terminal))
    }

    /// Raw mode is entered each time: a shell takes it back when it stops a job.
    fn look(&mut self) -> io::Result<()> {
        self.looked = Instant::now();
        without_being_stopped(|| {
            self.foreground = !in_background();
            if self.foreground { enter_raw_mode() } else { Ok(()) }
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
            // One that is gone is seen by those who read it.
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

    fn input(&mut self, byte: u8) -> Input {
        match self.keys.feed(byte) {
            Some(Key::Guest(byte)) => Input::Guest(byte),
            Some(Key::Help) => Input::Show(HELP),
            Some(Key::Quit) => {
                self.waker.quit();
                Input::Taken
            }
            None => Input::Taken,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn enter_raw_mode() -> io::Result<()> {
    let stdin = io::stdin();
    let mut saved = lock(&SAVED);
    let before = match &*saved {
        Some(before) => before.clone(),
        None => tcgetattr(&stdin)?,
    };
    let mut raw = before.clone();
    raw.make_raw();
    // Our own messages end in a bare newline.
    raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    *saved = Some(before);
    Ok(tcsetattr(&stdin, OptionalActions::Now, &raw)?)
}

fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        put_back(&before);
    }
}

/// The same for a signal handler, which may wait for nobody.
pub fn restore_now() {
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(before) = saved.take()
    {
        put_back(&before);
    }
}

fn put_back(before: &Termios) {
    without_being_stopped(|| {
        // In the background the shell has put it back; now it has what the shell wants.
        if !in_background() {
            // Nothing can be done about a terminal that is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    });
}

/// Does `work` without the signals by which a terminal stops those that touch it from the background.
fn without_being_stopped<T>(work: impl FnOnce() -> T) -> T {
    let signals = [libc::SIGTTIN, libc::SIGTTOU];
    let blocked = signals.map(|signal| block_signal(signal).is_ok());
    let done = work();
    for (signal, _) in signals.into_iter().zip(blocked).filter(|(_, blocked)| *blocked) {
        let _ = unblock_signal(signal);
    }
    done
}

/// Whether the terminal's input belongs to others: with SIGTTIN blocked a read fails then, even one of nothing
/// (n_tty_read, drivers/tty/n_tty.c). Group numbers would not do: none is known in a PID namespace of our own.
fn in_background() -> bool {
    rustix::io::read(io::stdin(), &mut [0u8; 0]) == Err(Errno::IO)
}

/// What Ctrl-A h shows.
pub const HELP: &str = "\n\
    Ctrl-A h  this help\n\
    Ctrl-A x  stop the machine\n\
    Ctrl-A a  send Ctrl-A to the guest\n";

/// What the user typed means.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    /// For the guest.
    Guest(u8),
    /// Stop the machine.
    Quit,
    /// Show [`HELP`].
    Help,
}

/// Finds our keys in what the user types: those after Ctrl-A.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    const ESCAPE: u8 = 0x01;

    /// What `byte` means, if it ends a key.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        if !self.escaped && byte == Self::ESCAPE {
            self.escaped = true;
            return None;
        }
        let escaped = std::mem::take(&mut self.escaped);
        Some(match byte {
            b'x' | b'X' if escaped => Key::Quit,
            b'h' | b'H' | b'?' if escaped => Key::Help,
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
        let mut keys = Keys::default();
        let typed = b"ax\x01x\x01h\x01a\x01\x01z";
        let meant: Vec<Key> = typed.iter().filter_map(|byte| keys.feed(*byte)).collect();
        let expected = [
            Key::Guest(b'a'),
            Key::Guest(b'x'),
            Key::Quit,
            Key::Help,
            Key::Guest(1),
            Key::Guest(1),
            Key::Guest(b'z'),
        ];
        assert_eq!(meant, expected);
    }
}

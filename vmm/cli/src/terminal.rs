//! The user's terminal: raw mode that is always taken back, and the keys that are ours.

use std::io::{self, IsTerminal};
use std::sync::Mutex;

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use tinyvmm::sync::lock;

/// The terminal's settings before ours; `None` while they are in force.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps standard input in raw mode. Dropping it restores the terminal; so does a panic.
pub struct RawMode(());

impl RawMode {
    /// Makes standard input raw, if it is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || in_background() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Our own messages end in a bare newline.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        *lock(&SAVED) = Some(before);
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            default_hook(panic);
        }));
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// The same for a signal handler, which may wait for nobody.
pub fn restore_now() {
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(before) = saved.take()
    {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether the terminal's input belongs to others: touching it would stop the process (SIGTTOU).
pub fn in_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground != getpgrp())
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

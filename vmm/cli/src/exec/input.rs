//! Standard input on its way to a command: what was read of it and has not gone on.

use std::fs::File;
use std::io::{self, ErrorKind, Read, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use rustix::event::Timespec;
use tinyvmm::devices::console::{KeyAction, Keyboard};

use crate::terminal::{Mode, Terminal};

/// Most bytes that are read at a time.
pub const PIECE: usize = 32 << 10;
/// Most bytes that are kept of keys which the command does not read.
const MAX_TYPED: usize = 4096;

/// Input, from a terminal whose keys may be ours or from anything else.
pub struct Input {
    /// `None` at its end.
    source: Option<File>,
    keys: Option<Terminal>,
    typed: Vec<u8>,
    /// The end has not gone on yet.
    owes_end: bool,
}

impl Input {
    /// Standard input, at `keys` if it is a terminal of which more is wanted than bytes; without `is_wanted` its end.
    pub fn new(is_wanted: bool, keys: Option<Terminal>) -> Result<Self> {
        let source = || stdin().as_fd().try_clone_to_owned().map(File::from);
        let source = is_wanted.then(source).transpose().context("standard input")?;
        Ok(Self { source, keys, typed: Vec::new(), owes_end: !is_wanted })
    }

    /// Whether keys are read as they are typed: then some are ours, and are looked for all the time.
    pub fn has_keys(&self) -> bool {
        self.keys.as_ref().is_some_and(Terminal::is_raw)
    }

    /// How the terminal is to be from now on, if it is one.
    pub fn set_mode(&mut self, mode: Mode) -> io::Result<()> {
        self.keys.as_mut().map_or(Ok(()), |keys| keys.set_mode(mode))
    }

    /// What is to be read when it is readable.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        let reads = self.has_keys() || self.typed.is_empty();
        let is_ours = self.keys.as_ref().is_none_or(Keyboard::is_ours);
        self.source.as_ref().filter(|_| reads && is_ours).map(File::as_fd)
    }

    /// Readable when the process may have come to the foreground or gone to the background.
    pub fn changed(&self) -> Option<BorrowedFd<'_>> {
        self.keys.as_ref().map(Keyboard::changed)
    }

    /// The longest time before the next call of [`Self::check`].
    pub fn patience(&self) -> Option<Timespec> {
        self.keys.as_ref().and_then(Keyboard::patience).and_then(|time| time.try_into().ok())
    }

    /// Finds out whether the process is in the foreground; `changed` says whether that descriptor was readable.
    pub fn check(&mut self, changed: bool) {
        if let Some(keys) = &mut self.keys {
            keys.check(changed);
        }
    }

    /// Reads what there is.
    pub fn read(&mut self) {
        let mut bytes = [0; PIECE];
        let Some(mut source) = self.source.as_ref() else { return };
        let read = match &mut self.keys {
            Some(keys) => keys.read(source, &mut bytes),
            None => source.read(&mut bytes),
        };
        let bytes = match read {
            Ok(len @ 1..) => &bytes[..len],
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) =>
            {
                return;
            }
            // A terminal that is gone, or what cannot be read, has ended.
            _ => {
                (self.source, self.owes_end) = (None, true);
                return;
            }
        };
        let Some(keys) = self.keys.as_mut().filter(|keys| keys.is_raw()) else {
            return self.typed.extend(bytes);
        };
        for byte in bytes {
            match keys.input(*byte) {
                KeyAction::Guest(byte) if self.typed.len() < MAX_TYPED => self.typed.push(byte),
                KeyAction::Guest(_) | KeyAction::Ignore => {}
                KeyAction::Show(text) => {
                    // The terminal may be one that does not return the carriage by itself.
                    let text = text.replace('\n', "\r\n");
                    let _ = rustix::io::write(stdout(), text.as_bytes());
                }
            }
        }
    }

    /// The next bytes that go on, `most` at most; once none, the end. `None`: there are none now.
    pub fn next(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.typed.is_empty() {
            return std::mem::take(&mut self.owes_end).then(Vec::new);
        }
        let len = self.typed.len().min(most);
        (len > 0).then(|| self.typed.drain(..len).collect())
    }
}

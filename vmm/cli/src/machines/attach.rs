//! `tinyvmm attach`: this terminal becomes one more of a machine's console.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tinyvmm::devices::console::{KeyAction, Keyboard};

use crate::config::machine_name;
use crate::inbox::{Inbox, Message};
use crate::names::{self, Known};
use crate::terminal::{Mode, Terminal};
use crate::{ctl, logger};

/// How long the machine may take to answer that it ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// The flags of `tinyvmm attach`.
#[derive(Args, Debug)]
pub struct AttachOptions {
    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,
}

/// Passes input to the machine's console and prints its output, until the user leaves or the machine ends.
pub fn attach(options: &AttachOptions) -> Result<ExitCode> {
    let known = names::find(&options.machine)?;
    if !known.lives {
        bail!("{0}: the machine has ended, see tinyvmm logs {0}", known.name);
    }
    let stream = known.attach()?;
    let inbox = Inbox::new()?;
    let terminal = Terminal::open(inbox.waker(), true, Mode::default())
        .context("cannot set up the terminal")?;
    if terminal.is_some() {
        logger::print_message(format_args!("attached to {}, Ctrl-A h shows the keys", known.name));
    }
    let source = io::stdin().as_fd().try_clone_to_owned().ok().map(File::from);
    Attached { known, stream, source, terminal, inbox }.run()?;
    Ok(ExitCode::SUCCESS)
}

struct Attached {
    known: Known,
    stream: UnixStream,
    /// `None` at its end.
    source: Option<File>,
    /// The source, if it is a terminal.
    terminal: Option<Terminal>,
    inbox: Inbox,
}

impl Attached {
    fn run(&mut self) -> Result<()> {
        loop {
            match self.inbox.wait(Some(Instant::now())) {
                Some(Message::Quit) => {
                    ctl::ask(&self.known.api(), PATIENCE, "PUT", "/tinyvmm/stop", None)?;
                    while self.print() {} // its last words
                    return Ok(());
                }
                Some(_) => return Ok(()),
                None => {}
            }
            let (output, input) = self.wait();
            if output && !self.print() {
                return Ok(());
            }
            if input {
                self.read_in();
            }
        }
    }

    /// Waits; returns whether there is output of the machine, and whether there is input of the user's.
    fn wait(&mut self) -> (bool, bool) {
        let (terminal, wake) = (self.terminal.as_ref(), self.inbox.wake());
        let listens = terminal.is_none_or(Keyboard::is_ours);
        let source = self.source.as_ref().filter(|_| listens).map(AsFd::as_fd);
        let changed = terminal.map(Keyboard::changed);
        // What there is not is replaced by what is in the list already.
        let fds = [self.stream.as_fd(), wake, source.unwrap_or(wake), changed.unwrap_or(wake)];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let patience = terminal.and_then(Keyboard::patience);
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        // An error is EINTR: none is ready then.
        let done = poll(&mut fds, patience.as_ref()).is_ok();
        let [output, _, input, changed] = fds.map(|fd| done && !fd.revents().is_empty());
        let input = input && source.is_some();
        if let Some(terminal) = &mut self.terminal {
            terminal.check(changed);
        }
        (output, input)
    }

    /// Prints what the machine has printed; false at its end, or if nobody reads it.
    fn print(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Ok(len @ 1..) => show(&bytes[..len]).is_ok(),
            _ => false,
        }
    }

    /// Sends what the user has typed.
    fn read_in(&mut self) {
        let Some(source) = &mut self.source else { return };
        let mut bytes = [0; 256];
        let read = match &mut self.terminal {
            Some(terminal) => terminal.read(source, &mut bytes),
            None => source.read(&mut bytes),
        };
        let len = match read {
            Ok(len @ 1..) => len,
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) =>
            {
                return;
            }
            // No more input; there may be more output.
            _ => {
                self.source = None;
                return;
            }
        };
        let mut typed = Vec::new();
        for byte in &bytes[..len] {
            match self.terminal.as_mut().map(|terminal| terminal.input(*byte)) {
                None => typed.push(*byte),
                Some(KeyAction::Guest(byte)) => typed.push(byte),
                Some(KeyAction::Show(text)) => drop(show(text.as_bytes())),
                Some(KeyAction::Ignore) => {}
            }
        }
        // The end of the machine shows in its output.
        let _ = self.stream.write_all(&typed);
    }
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(bytes)?;
    stdout.flush()
}

//! Where a machine's console goes: this terminal, a pipe, a file, nowhere.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use tinyvmm::devices::console::{Console, Input};

use crate::config::{Config, ConsoleConfig};
use crate::files;
use crate::inbox::Waker;
use crate::terminal::{HELP, Key, Keys, RawMode, in_background};

/// A console that is to be connected as `config` says.
pub fn new(config: &Config) -> Result<Console> {
    let mut console = Console::new(config.process.console == ConsoleConfig::Off)?;
    if !config.process.command.is_empty() {
        console.feed_command();
    }
    Ok(console)
}

/// Opens what `config` connects the console to, and connects it. A terminal is raw for as long as the result lives.
pub fn connect(console: &mut Console, config: &Config, waker: Waker) -> Result<Option<RawMode>> {
    match &config.process.console {
        ConsoleConfig::Off => Ok(None),
        ConsoleConfig::File(path) => {
            let file = files::create(path, &config.machine.0);
            console.connect(file.with_context(|| format!("console {}", path.display()))?, None);
            Ok(None)
        }
        ConsoleConfig::Stdio => {
            // Copies, so that std's buffers stay out of the way.
            let sink = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let source = match in_background() {
                true => None,
                false => io::stdin().as_fd().try_clone_to_owned().ok().map(File::from),
            };
            console.connect(sink, source);
            let raw = RawMode::enter().context("cannot set up the terminal")?;
            if raw.is_some() {
                let mut keys = Keys::default();
                console.set_filter(Box::new(move |byte| match keys.feed(byte) {
                    Some(Key::Guest(byte)) => Input::Guest(byte),
                    Some(Key::Help) => Input::Show(HELP),
                    Some(Key::Quit) => {
                        waker.quit();
                        Input::Taken
                    }
                    None => Input::Taken,
                }));
            }
            Ok(raw)
        }
    }
}

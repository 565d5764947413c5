//! Connects a machine's console: to this terminal, a pipe, a file or nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};
use tinyvmm::devices::console::Console;
use tinyvmm::rate::Limiter;

use crate::config::{Config, ConsoleConfig};
use crate::exec::GuestCommand;
use crate::files;
use crate::inbox::Waker;
use crate::terminal::{Mode, Terminal};

/// Makes the console that `config` describes, not yet connected.
pub fn new(config: &Config) -> Result<Console> {
    let mut console = Console::new(config.process.console == ConsoleConfig::Off)?;
    if let Some(limit) = &config.process.console_limit {
        console.output().set_limiter(Limiter::new(limit, Instant::now()));
    }
    if !config.process.command.is_empty() {
        console.feed_command(config.process.by_agent);
    }
    Ok(console)
}

/// Opens the console's file or terminal, as `config` says, and connects the console to it. A terminal becomes raw. Where
/// there is a `command`, input is that's to pass on.
pub fn connect(
    console: &mut Console,
    config: &Config,
    waker: Waker,
    command: Option<&mut GuestCommand>,
) -> Result<()> {
    match &config.process.console {
        ConsoleConfig::Off => Ok(()),
        ConsoleConfig::File(path) => {
            let file = files::create(path, &config.machine.0);
            console.connect(file.with_context(|| format!("console {}", path.display()))?, None);
            Ok(())
        }
        ConsoleConfig::Stdio if config.process.detach => Ok(()),
        ConsoleConfig::Stdio => {
            // Copies of the descriptors, so that std does not buffer.
            let sink = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            if let Some(command) = command {
                let source = command.source(waker).context("cannot set up the terminal")?;
                console.connect(sink, source);
                return Ok(());
            }
            let source = io::stdin().as_fd().try_clone_to_owned().ok().map(File::from);
            console.connect(sink, source);
            if let Some(terminal) = Terminal::open(waker, false, Mode::default())
                .context("cannot set up the terminal")?
            {
                console.set_keyboard(Box::new(terminal));
            }
            Ok(())
        }
    }
}

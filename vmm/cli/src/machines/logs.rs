//! `tinyvmm logs`: what a machine has printed.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::config::machine_name;
use crate::names::{self, ring};

/// The flags of `tinyvmm logs`.
#[derive(Args, Debug)]
pub struct LogsOptions {
    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,

    /// Go on until the machine ends
    #[arg(long, short)]
    follow: bool,
}

/// Prints the log.
pub fn logs(options: &LogsOptions) -> Result<ExitCode> {
    let known = names::find(&options.machine)?;
    let file = known.log()?;
    // A byte on this socket, or its end, shows that there is more in the log, or nothing any more.
    let mut news = match options.follow && known.lives {
        true => Some(known.attach()?),
        false => None,
    };
    let mut seen = 0;
    loop {
        let (bytes, written) = ring::read(&file, seen)?;
        seen = written;
        if std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()).is_err() {
            break; // a reader that has seen enough
        }
        let Some(stream) = &mut news else { break };
        if !matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
            news = None; // the last words
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `tinyvmm stop`: a machine powers off, or is ended.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::machine_name;
use crate::names::{self, Known};

/// How long a process may take after SIGTERM: it gives its guest 5 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after SIGKILL: the kernel has to free its memory.
const LAST: Duration = Duration::from_secs(30);

/// The flags of `tinyvmm stop`.
#[derive(Args, Debug)]
pub struct StopOptions {
    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,
}

/// Ends the machine, and removes what is left of it.
pub fn stop(options: &StopOptions) -> Result<ExitCode> {
    let known = names::find(&options.machine)?;
    if known.lives {
        end(&known).with_context(|| known.name.clone())?;
    }
    known.clear()?;
    Ok(ExitCode::SUCCESS)
}

fn end(known: &Known) -> Result<()> {
    // The process that listens, by a number that is valid here: not one that a file has.
    let Ok(stream) = UnixStream::connect(known.api()) else {
        bail!("it is just starting or ending, try again");
    };
    let listener = socket_peercred(&stream)?;
    let process = pidfd_open(listener.pid, PidfdFlags::empty()).context("cannot signal it")?;
    // As long as it has its lock, it is the process that had this number.
    if !names::find(&known.name).is_ok_and(|now| now.lives) {
        return Ok(());
    }
    for (signal, patience) in [(Signal::TERM, PATIENCE), (Signal::KILL, LAST)] {
        // Fails if it has ended.
        let _ = pidfd_send_signal(&process, signal);
        let patience = Timespec::try_from(patience)?;
        let mut end = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut end, Some(&patience)).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
    }
    bail!("its process does not end")
}

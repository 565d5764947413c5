//! `tinyvmm stop`: a machine powers off, or is ended.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::config::{duration, machine_name};
use crate::ctl;
use crate::names::{self, Known};

/// How long a process may take to answer, and to end when it has answered.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take to end when it is killed: the kernel has to free its memory.
const LAST: Duration = Duration::from_secs(30);

/// The flags of `tinyvmm stop`.
#[derive(Args, Debug)]
pub struct StopOptions {
    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,

    /// How long the guest may take to power off before it is ended: `30s`, `2m`
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    timeout: Duration,

    /// Only remove what a machine that has ended has left
    #[arg(long)]
    ended: bool,
}

/// Ends the machine, and removes what is left of it.
pub fn stop(options: &StopOptions) -> Result<ExitCode> {
    let known = names::find(&options.machine)?;
    if known.lives && options.ended {
        return Ok(ExitCode::SUCCESS);
    }
    if known.lives {
        end(&known, options.timeout).with_context(|| known.name.clone())?;
    }
    known.clear()?;
    Ok(ExitCode::SUCCESS)
}

fn end(known: &Known, timeout: Duration) -> Result<()> {
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
    let ask = |method, path| ctl::ask(&known.api(), PATIENCE, method, path, None);
    let ends_within = |patience| {
        let mut end = [PollFd::new(&process, PollFlags::IN)];
        let patience = Timespec::try_from(patience).ok();
        poll(&mut end, patience.as_ref()).is_ok_and(|ready| ready > 0)
    };
    // A guest that is paused cannot react.
    let runs = ask("GET", "/").is_ok_and(|machine| machine["state"] == "Running");
    if runs && ask("PUT", "/tinyvmm/power-button").is_ok() && ends_within(timeout)
        || ask("PUT", "/tinyvmm/stop").is_ok() && ends_within(PATIENCE)
    {
        return Ok(());
    }
    // Fails if it has ended.
    let _ = pidfd_send_signal(&process, Signal::KILL);
    if ends_within(LAST) { Ok(()) } else { bail!("its process does not end") }
}

//! `--detach`: the machine's process in the background, and the user's, which waits until the guest's init runs.
//!
//! The machine's process has the other ends of two pipes as its standard output and error: one for bytes that say how
//! far it is, one for its messages. When the user's process has ended, nobody reads them.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use tinyvmm::timeline::Mark;

use crate::{jail, logger};

/// How long a guest that has started may take to show that its init runs. Not all guests show it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same, for a guest that goes on and takes a new identity: one that is not waited for would be taken for another.
const FOR_IDENTITY: Duration = Duration::from_secs(60);

/// CPU 0 is about to run.
const STARTED: u8 = b's';
/// The guest's init runs.
const INIT_RUNS: u8 = b'i';

/// Passes a mark of the boot on to the user's process.
pub fn reached(mark: Mark) {
    let byte = match mark {
        Mark::CpuEntered => STARTED,
        Mark::InitStarted | Mark::InitMark => INIT_RUNS,
        _ => return,
    };
    // Nobody may wait any more.
    let _ = rustix::io::write(io::stdout(), &[byte]);
}

/// Forks. Returns `None` in the process that is to be the machine's; in the user's process the exit code, once the
/// machine runs or has ended. That process prints `new_name` when the machine has started. `goes_on`: it is restored.
pub fn detach(new_name: Option<&str>, goes_on: bool) -> Result<Option<ExitCode>> {
    let (progress, report) = io::pipe().context("--detach")?;
    let (messages, stderr) = io::pipe().context("--detach")?;
    let nothing = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let Some(child) = jail::fork().context("--detach: cannot start a process")? else {
        // A session of its own: a terminal that hangs up does not end it.
        setsid()?;
        dup2_stdin(&nothing)?;
        dup2_stdout(&report)?;
        dup2_stderr(&stderr)?;
        return Ok(None);
    };
    drop((report, stderr));
    let patience = if goes_on { FOR_IDENTITY } else { PATIENCE };
    if has_ended(progress, &messages, new_name, patience) {
        return end_of(child, messages).map(Some);
    }
    Ok(Some(ExitCode::SUCCESS))
}

/// Waits until the machine runs or has ended, and shows its messages meanwhile; true if it has ended.
fn has_ended(
    mut progress: PipeReader,
    mut messages: &PipeReader,
    new_name: Option<&str>,
    patience: Duration,
) -> bool {
    let mut deadline: Option<Instant> = None;
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds =
            [PollFd::new(&progress, PollFlags::IN), PollFd::new(&messages, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return false,
            Err(_) => continue,
            Ok(_) => {}
        }
        let [moved, said] = fds.map(|fd| !fd.revents().is_empty());
        let mut bytes = [0; 4096];
        if said && let Ok(len) = messages.read(&mut bytes) {
            let _ = io::stderr().write_all(&bytes[..len]);
        }
        match progress.read(&mut bytes[..usize::from(moved)]) {
            _ if !moved => {}
            Ok(1) if bytes[0] == STARTED => {
                deadline = Some(Instant::now() + patience);
                let _ = new_name.map(|name| writeln!(io::stdout(), "{name}"));
            }
            Ok(1) => return false,
            _ => return true,
        }
    }
}

/// The exit code of `child`, which has ended, after the rest of its messages.
fn end_of(child: Pid, mut messages: PipeReader) -> Result<ExitCode> {
    let _ = io::copy(&mut messages, &mut io::stderr());
    let status = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("--detach: cannot wait for the machine"),
        }
    };
    if let Some(signal) = status.terminating_signal() {
        logger::print_message(format_args!("the machine was ended by signal {signal}"));
    }
    Ok(ExitCode::from(status.exit_status().map_or(1, |code| code as u8)))
}

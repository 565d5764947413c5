//! A machine as a process of its own, which cannot outlive the runner.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

/// Variable with the id of the process that a tinyvmm must not outlive.
const RUNNER: &str = "TINYVMM_BOOT_TEST_RUNNER";
/// The signals that stop a machine, and when: tinyvmm takes signals within half a second for one request, so the second
/// SIGTERM comes later, and ends it.
const SIGNALS: [(Duration, Signal); 3] = [
    (Duration::ZERO, Signal::TERM),
    (Duration::from_millis(600), Signal::TERM),
    (Duration::from_millis(5600), Signal::KILL),
];

/// Has this process die with the runner that started it, if one has, however the runner dies.
///
/// The signal comes when the runner's thread that started this process ends (prctl(2), PR_SET_PDEATHSIG): that thread
/// outlives the machine.
///
/// Returns whether there is one.
pub fn die_with_runner() -> bool {
    let Ok(runner) = std::env::var(RUNNER) else { return false };
    // Where this fails, --timeout still ends the machine.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // The runner may be dead already.
    let is_there = getppid().map(|pid| pid.as_raw_nonzero().to_string()) == Some(runner);
    is_there || std::process::exit(super::EXIT_FAILED.into())
}

/// The source of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The guest's output.
    Stdout,
    /// tinyvmm's messages.
    Stderr,
}

/// The result of a wait.
pub enum Next {
    Output(Stream, Vec<u8>),
    /// No output until the deadline.
    Quiet,
    /// The process has ended.
    Ended(ExitStatus),
}

/// A running tinyvmm. Dropping it kills it.
pub struct VmmProcess {
    child: Child,
    /// The pipes that are still open.
    pipes: Vec<(Stream, File)>,
    /// When it was first asked to stop, and the number of [`SIGNALS`] that were sent.
    stopping: Option<Instant>,
    sent: usize,
}

impl VmmProcess {
    /// Starts `program`, which is tinyvmm, with `flags` in the folder `folder`.
    pub fn start(program: &Path, flags: &[OsString], folder: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(flags).current_dir(folder).env(RUNNER, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is the runner's, which then writes the results that there are.
        command.process_group(0);
        let mut child = command.spawn().context("cannot start tinyvmm")?;
        let stdout = child.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe).into()));
        let stderr = child.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe).into()));
        let pipes = stdout.into_iter().chain(stderr).collect();
        Ok(Self { child, pipes, stopping: None, sent: 0 })
    }

    /// Waits for output or the end, until `until`.
    pub fn next(&mut self, until: Instant) -> Result<Next> {
        let left = until.saturating_duration_since(Instant::now());
        if self.pipes.is_empty() {
            if let Some(status) = self.child.try_wait().context("cannot wait for tinyvmm")? {
                return Ok(Next::Ended(status));
            }
            thread::sleep(left.min(Duration::from_millis(2)));
            return Ok(Next::Quiet);
        }
        let pipes = self.pipes.iter().map(|(_, pipe)| pipe);
        let mut fds: Vec<_> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        // An error is EINTR: no pipe is ready.
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        let Some(ready) = fds.iter().position(|fd| !fd.revents().is_empty()) else {
            return Ok(Next::Quiet);
        };
        let mut bytes = vec![0; 16 << 10];
        let (stream, mut pipe) = self.pipes.swap_remove(ready);
        let len = pipe.read(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        if !bytes.is_empty() {
            // At the end of the list, so that the other pipe has its turn.
            self.pipes.push((stream, pipe));
        }
        Ok(Next::Output(stream, bytes))
    }

    /// Sends the signals that are due, until the process ends. To be called repeatedly.
    pub fn stop(&mut self, now: Instant) {
        let since = *self.stopping.get_or_insert(now);
        while let Some((after, signal)) = SIGNALS.get(self.sent)
            && now >= since + *after
        {
            // The process was not waited for before `Ended`, so the id is still its own.
            let _ = kill_process(Pid::from_child(&self.child), *signal);
            self.sent += 1;
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

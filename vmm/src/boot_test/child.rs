//! A machine as a process of its own: this program again, with flags. It cannot outlive the runner.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

/// Tells a tinyvmm the process that it must not outlive.
const RUNNER: &str = "TINYVMM_BOOT_TEST_RUNNER";
/// Between the request to power off and the order to stop: tinyvmm takes two signals that are less
/// than half a second apart for one request.
const PATIENCE: Duration = Duration::from_millis(600);
/// What tinyvmm then has to stop.
const LAST: Duration = Duration::from_secs(5);
/// How much output waits to be looked at, in parts of at most 16 KiB.
const WAITING_PARTS: usize = 16;

/// If a runner has started this process, it dies when that does, however it does.
///
/// The signal comes when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG): the runner's
/// thread for a machine ends after the machine.
pub fn die_with_runner() {
    let Some(runner) = std::env::var(RUNNER).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return;
    };
    // Where this fails, --timeout still ends the machine.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have died before.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(runner) {
        std::process::exit(crate::cli::EXIT_INTERNAL.into());
    }
}

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// What the guest prints.
    Stdout,
    /// tinyvmm's messages, and what the guest's command prints there.
    Stderr,
}

/// What is read next.
pub(super) enum Next {
    Output(Stream, Vec<u8>),
    /// Nothing came until the time that was given.
    Quiet,
    /// The process has ended.
    Ended(ExitStatus),
}

/// A running tinyvmm. Dropping it kills it.
pub(super) struct Vmm {
    child: Child,
    output: mpsc::Receiver<(Stream, Vec<u8>)>,
    stopping: Stopping,
}

/// How far the machine's stop is.
#[derive(Clone, Copy)]
enum Stopping {
    No,
    Asked(Instant),
    Ordered(Instant),
    Killed,
}

impl Vmm {
    /// Starts tinyvmm with `flags` in the folder `folder`.
    pub(super) fn start(flags: &[OsString], folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new(program);
        command.args(flags).current_dir(folder).env(RUNNER, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is the runner's: it tells what was done until then.
        command.process_group(0);
        let mut child = command.spawn().context("cannot start tinyvmm")?;
        let (sender, output) = mpsc::sync_channel(WAITING_PARTS);
        let pipes: [(Stream, Option<Box<dyn Read + Send>>); 2] = [
            (Stream::Stdout, child.stdout.take().map(|pipe| Box::new(pipe) as _)),
            (Stream::Stderr, child.stderr.take().map(|pipe| Box::new(pipe) as _)),
        ];
        let vmm = Self { child, output, stopping: Stopping::No };
        for (stream, pipe) in pipes {
            let Some(pipe) = pipe else { continue };
            let sender = sender.clone();
            // It ends with the process, which closes its end.
            let reader = move || forward(stream, pipe, &sender);
            thread::Builder::new().spawn(reader).context("cannot start a thread")?;
        }
        Ok(vmm)
    }

    /// What comes until `until`.
    pub(super) fn next(&mut self, until: Instant) -> Result<Next> {
        let left = until.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok((stream, bytes)) => Ok(Next::Output(stream, bytes)),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Quiet),
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(status) = self.child.try_wait().context("cannot wait for tinyvmm")? {
                    return Ok(Next::Ended(status));
                }
                thread::sleep(left.min(Duration::from_millis(2)));
                Ok(Next::Quiet)
            }
        }
    }

    /// Asks the machine to stop, then makes it: to be called until it has ended.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = match self.stopping {
            Stopping::No => {
                self.signal(Signal::TERM);
                Stopping::Asked(now)
            }
            Stopping::Asked(since) if now >= since + PATIENCE => {
                self.signal(Signal::TERM);
                Stopping::Ordered(now)
            }
            Stopping::Ordered(since) if now >= since + LAST => {
                self.signal(Signal::KILL);
                Stopping::Killed
            }
            same => same,
        };
    }

    fn signal(&self, signal: Signal) {
        // The process was not waited for yet, or `Ended` was the answer: the number is its own.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail when it has ended already, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(stream: Stream, mut pipe: impl Read, sender: &mpsc::SyncSender<(Stream, Vec<u8>)>) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let len = match pipe.read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let part = bytes.get(..len).unwrap_or_default().to_vec();
        if sender.send((stream, part)).is_err() {
            return; // nobody looks any more
        }
    }
}

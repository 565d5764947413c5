//! A run of a machine: starts it, watches it, stops it, judges it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::child::{Next, Stream, VmmProcess};
use super::figures::{self, Figures, RunReport};
use super::lines::{LastLines, LineSplitter};
use super::log::Log;
use super::matcher::{Matcher, Position, shown};
use super::outcome::Status;
use super::results::now;
use super::test::{TIMEOUT, Test, Wanted};

/// The end in a boot report when the guest, or its command, has given an exit status.
const EXIT: &str = "exit";

/// After a console is quiet for this long, its unfinished line may be a prompt and is searched.
const QUIET: Duration = Duration::from_millis(50);
/// Time for what is printed after a failure (a call trace) and belongs to it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time beyond the machine's own --timeout before the runner stops the machine.
const GRACE: Duration = Duration::from_secs(10);

/// The result of a run, also the JSON of it.
#[derive(Debug, Default, Serialize)]
pub struct Run {
    pub result: Status,
    /// The start, in ISO 8601.
    pub timestamp: String,
    pub seconds: f64,
    /// tinyvmm's exit code; `None` if it was killed or did not start.
    pub exit_code: Option<i32>,
    /// How the machine ended, by its name in the boot report; `None` if there was no machine.
    pub end: Option<String>,
    /// Why the run did not pass.
    pub reason: Option<String>,
    /// Kept for failures, and until the run's figures are compared.
    pub log: Option<PathBuf>,
    pub figures: Figures,
    /// The console's last lines.
    #[serde(skip)]
    pub last_lines: Vec<String>,
}

impl Run {
    /// A run for which no process could be started.
    pub fn not_started(error: &anyhow::Error) -> Self {
        let (timestamp, reason) = (now(), Some(format!("{error:#}")));
        Self { result: Status::Failed, timestamp, reason, ..Self::default() }
    }
}

/// The settings that all runs share.
pub struct Runner<'a> {
    /// The `tinyvmm` command.
    pub program: &'a Path,
    /// The folder to which flags' paths are relative.
    pub folder: &'a Path,
    pub logs: &'a Path,
    /// Set when the user interrupts the run.
    pub interrupt: &'a AtomicBool,
}

impl Runner<'_> {
    /// Runs `test` once, with `name`.log as its log.
    pub fn run(&self, test: &Test, name: &str) -> Result<Run> {
        let mut log = Log::create(self.logs, name)?;
        let report = self.logs.join(format!("{name}.report.json"));
        let (timestamp, start) = (now(), Instant::now());
        let mut watch = Watch::new(test, start, &mut log)?;
        let vmm = VmmProcess::start(self.program, &flags(test, &report), self.folder);
        let status = vmm.and_then(|vmm| watch.until_the_end(vmm, self.interrupt));
        let measured = figures::read(&report).unwrap_or_default();
        let _ = std::fs::remove_file(&report);
        let exit_code = status.as_ref().ok().and_then(ExitStatus::code);
        let mut reasons = match status {
            _ if watch.interrupted => vec!["interrupted".to_owned()],
            Ok(status) => watch.judge(status, &measured),
            Err(error) => vec![format!("{error:#}")],
        };
        let result = match reasons.is_empty() {
            _ if watch.interrupted => Status::NotRun,
            true => Status::Passed,
            false => Status::Failed,
        };
        let last_lines = watch.last_lines.into_lines();
        let mut reason = None;
        if result != Status::Passed {
            reasons.extend(log.error.take());
            // The guest's output may be in it, and a terminal will show it.
            let text = reasons.join("; ").replace(char::is_control, " ");
            log.note(&format!("failed: {text}"));
            reason = Some(text);
        }
        let log = Some(log.path);
        let (seconds, RunReport { end, figures, .. }) = (start.elapsed().as_secs_f64(), measured);
        Ok(Run { result, timestamp, seconds, exit_code, end, reason, log, figures, last_lines })
    }
}

fn flags(test: &Test, report: &Path) -> Vec<OsString> {
    let mut flags = test.machine.flags.clone();
    if !flags.iter().any(|flag| flag.as_encoded_bytes().starts_with(b"--no-reboot=")) {
        flags.push("--no-reboot".into());
    }
    flags.push(format!("--timeout={}", shown(test.timeout)).into());
    flags.push(["--boot-report=".as_ref(), report.as_os_str()].join("".as_ref()));
    if !test.command.is_empty() {
        flags.push("--".into());
        flags.extend(test.command.iter().map(Into::into));
    }
    flags
}

/// The observations of a run.
struct Watch<'a> {
    test: &'a Test,
    log: &'a mut Log,
    matcher: Matcher<'a>,
    /// Standard output and standard error.
    streams: [(LineSplitter, Position); 2],
    last_lines: LastLines,
    /// The last message of tinyvmm's own.
    said: Option<String>,
    /// The user has interrupted the run.
    interrupted: bool,
    /// When to stop the machine.
    stop_at: Instant,
}

impl<'a> Watch<'a> {
    fn new(test: &'a Test, start: Instant, log: &'a mut Log) -> Result<Self> {
        let stream = || anyhow::Ok((LineSplitter::new()?, Position::default()));
        let (streams, matcher) = ([stream()?, stream()?], Matcher::new(test, start));
        let (last_lines, said, interrupted) = (LastLines::default(), None, false);
        let stop_at = start + test.timeout + GRACE;
        Ok(Self { test, log, matcher, streams, last_lines, said, interrupted, stop_at })
    }

    fn until_the_end(&mut self, mut vmm: VmmProcess, interrupt: &AtomicBool) -> Result<ExitStatus> {
        loop {
            match vmm.next(Instant::now() + QUIET)? {
                Next::Output(stream, bytes) => self.output(stream, &bytes),
                Next::Quiet => self.unfinished(false),
                Next::Ended(status) => {
                    self.unfinished(true);
                    return Ok(status);
                }
            }
            let now = Instant::now();
            self.interrupted |= interrupt.load(Ordering::Relaxed);
            if self.interrupted || self.is_to_stop(now) {
                vmm.stop(now);
            }
        }
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.log.write(bytes);
        let now = Instant::now();
        let (lines, position) = &mut self.streams[stream as usize];
        lines.push(bytes, |line| {
            self.last_lines.push(line);
            match line.strip_prefix("tinyvmm: ") {
                Some(said) if stream == Stream::Stderr => self.said = Some(said.to_owned()),
                _ => self.matcher.line(line, position, now),
            }
        });
    }

    /// Searches the unfinished lines: they may be prompts, or the last ones.
    fn unfinished(&mut self, ended: bool) {
        for (lines, position) in &mut self.streams {
            let Some(line) = lines.unfinished() else { continue };
            self.matcher.unfinished(&line, position, Instant::now());
            if ended {
                self.last_lines.push(&line);
            }
        }
    }

    fn is_to_stop(&mut self, now: Instant) -> bool {
        self.matcher.check(now);
        if self.matcher.failure.is_some() {
            self.stop_at = self.stop_at.min(now + LAST_WORDS);
        } else if self.test.end == Wanted::Shown && self.matcher.all_seen() {
            self.stop_at = self.stop_at.min(now);
        }
        now >= self.stop_at
    }

    /// The reasons for the run's failure; empty if it has passed.
    fn judge(&self, status: ExitStatus, measured: &RunReport) -> Vec<String> {
        if let Some(failure) = &self.matcher.failure {
            return vec![failure.clone()];
        }
        let (end, code) = (measured.end.as_deref(), status.code().map(i64::from));
        let wrong_end = match self.test.end {
            Wanted::Shown => None,
            Wanted::End(wanted) if end == Some(wanted) && code == measured.exit_code => None,
            Wanted::End(wanted) => Some(format!("the end is to be '{wanted}'")),
            Wanted::Status(wanted) if end == Some(EXIT) && code == Some(wanted.into()) => None,
            Wanted::Status(_) if end != Some(EXIT) && !self.test.command.is_empty() => {
                Some("the machine ended before its command".into())
            }
            Wanted::Status(wanted) => Some(format!("the exit status is to be {wanted}")),
        };
        let ended = self.how_it_ended(status, end);
        let not_seen = self.matcher.not_seen(&format!("before the end: {ended}"));
        let wrong_end = wrong_end.map(|wrong| format!("{wrong}: {ended}"));
        not_seen.into_iter().chain(wrong_end).collect()
    }

    fn how_it_ended(&self, status: ExitStatus, end: Option<&str>) -> String {
        let said = self.said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default();
        let Some(code) = status.code() else {
            return format!("tinyvmm was killed by signal {}", status.signal().unwrap_or(0));
        };
        match end {
            Some(EXIT) => format!("exit status {code}"),
            Some(TIMEOUT) => format!("it took longer than {}", shown(self.test.timeout)),
            Some(end) => format!("{end}{said}"),
            // Without a report there was no machine.
            None => format!("it could not start{said}"),
        }
    }
}

//! One run of one machine: started, watched, stopped, judged.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::{Serialize, Serializer};

use super::child::{Next, Stream, Vmm};
use super::figures::{self, Figures, Measured};
use super::lines::LineSplitter;
use super::log::Log;
use super::matcher::{Matcher, Position, shown};
use super::outcome::Status;
use super::results::timestamp;
use super::tail::LastLines;
use super::test::{TIMEOUT, Test, Wanted};

/// The boot report's end of a machine whose guest, or its command, has given an exit status.
const EXIT: &str = "exit";

/// A console that says nothing for so long may be waiting at a prompt: the line is looked at unfinished.
const QUIET: Duration = Duration::from_millis(50);
/// What is printed after a failure (a call trace) belongs to it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a machine has beyond its time before it is stopped from outside: --timeout comes first.
const GRACE: Duration = Duration::from_secs(10);

/// What came of a run, as it is in the JSON, too.
#[derive(Debug, Default, Serialize)]
pub(super) struct Run {
    pub(super) result: Status,
    /// When it was started, in ISO 8601.
    pub(super) timestamp: String,
    pub(super) seconds: f64,
    /// tinyvmm's exit code; `None` if it was killed or did not start.
    pub(super) exit_code: Option<i32>,
    /// How the machine ended, by its name in the boot report; `None` if there was no machine.
    pub(super) end: Option<String>,
    /// Why it did not pass.
    pub(super) reason: Option<String>,
    /// Kept of failures, and until it is known whether a run was within its budget.
    #[serde(serialize_with = "path_as_text")]
    pub(super) log: Option<PathBuf>,
    pub(super) figures: Figures,
    /// Those of the console.
    #[serde(skip)]
    pub(super) last_lines: Vec<String>,
}

#[expect(clippy::ref_option, reason = "serde's interface")]
fn path_as_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.display().to_string()).serialize(serializer)
}

impl Run {
    /// A run for which no process could be started.
    pub(super) fn not_started(error: &anyhow::Error) -> Self {
        let timestamp = timestamp(SystemTime::now());
        let reason = Some(format!("{error:#}"));
        Self { result: Status::Failed, timestamp, reason, ..Self::default() }
    }
}

/// What all runs have in common.
pub(super) struct Runner<'a> {
    /// The `tinyvmm` command.
    pub(super) program: &'a Path,
    /// What names of files in flags are relative to.
    pub(super) folder: &'a Path,
    pub(super) logs: &'a Path,
    /// Set when the user wants an end.
    pub(super) interrupt: &'a AtomicBool,
}

impl Runner<'_> {
    /// Runs `test` once, with `name`.log as its log.
    pub(super) fn run(&self, test: &Test, name: &str) -> Result<Run> {
        let mut log = Log::create(self.logs, name)?;
        let report = self.logs.join(format!("{name}.report.json"));
        let (timestamp, start) = (timestamp(SystemTime::now()), Instant::now());
        let vmm = Vmm::start(self.program, &flags(test, &report), self.folder);
        let mut watch = Watch::new(test, start, &mut log);
        let status = vmm.and_then(|vmm| watch.until_the_end(vmm, self.interrupt));
        let measured = figures::read(&report).unwrap_or_default();
        let _ = std::fs::remove_file(&report);
        let exit_code = status.as_ref().ok().and_then(ExitStatus::code);
        let (result, reason) = match status {
            _ if watch.interrupted => (Status::NotRun, Some("interrupted".to_owned())),
            Ok(status) => match watch.judge(status, &measured) {
                None => (Status::Passed, None),
                reason => (Status::Failed, reason),
            },
            Err(error) => (Status::Failed, Some(format!("{error:#}"))),
        };
        let last_lines = watch.last_lines.into_lines();
        // The guest's words may be in it, and a terminal will show it.
        let reason = reason.map(|reason| reason.replace(char::is_control, " "));
        if let Some(reason) = &reason {
            log.note(&format!("failed: {reason}"));
        }
        let (path, error) = log.keep();
        let Measured { end, figures, .. } = measured;
        Ok(Run {
            result,
            timestamp,
            seconds: start.elapsed().as_secs_f64(),
            exit_code,
            end,
            reason: reason.map(|reason| error.map_or(reason.clone(), |e| format!("{reason}; {e}"))),
            log: Some(path),
            figures,
            last_lines,
        })
    }
}

fn flags(test: &Test, report: &Path) -> Vec<OsString> {
    let mut flags = test.machine.flags.clone();
    if !test.machine.has("no-reboot") {
        flags.push("--no-reboot".into());
    }
    flags.push(format!("--timeout={}", shown(test.timeout)).into());
    let mut flag = OsString::from("--boot-report=");
    flag.push(report);
    flags.push(flag);
    if !test.command.is_empty() {
        flags.push("--".into());
        flags.extend(test.command.iter().map(Into::into));
    }
    flags
}

/// What is seen of a run.
struct Watch<'a> {
    test: &'a Test,
    start: Instant,
    log: &'a mut Log,
    matcher: Matcher<'a>,
    /// Standard output and standard error.
    streams: [(LineSplitter, Position); 2],
    last_lines: LastLines,
    /// tinyvmm's own last message.
    said: Option<String>,
    /// The user wants an end.
    interrupted: bool,
    /// When the machine is to be stopped, if there is a reason to.
    stop_at: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(test: &'a Test, start: Instant, log: &'a mut Log) -> Self {
        let matcher = Matcher::new(test, start);
        let (streams, last_lines) = Default::default();
        let (said, interrupted, stop_at) = Default::default();
        Self { test, start, log, matcher, streams, last_lines, said, interrupted, stop_at }
    }

    fn until_the_end(&mut self, mut vmm: Vmm, interrupt: &AtomicBool) -> Result<ExitStatus> {
        loop {
            match vmm.next(Instant::now() + QUIET)? {
                Next::Output(stream, bytes) => self.output(stream, &bytes),
                Next::Quiet => self.unfinished(),
                Next::Ended(status) => {
                    self.unfinished();
                    self.add_unfinished();
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

    /// What is not followed by a newline belongs to the console's end.
    fn add_unfinished(&mut self) {
        let lines = self.streams.iter().filter_map(|(lines, _)| lines.unfinished());
        lines.for_each(|line| self.last_lines.push(&line));
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

    /// Looks at the lines that go on; they may be prompts, or the last ones.
    fn unfinished(&mut self) {
        for (lines, position) in &mut self.streams {
            if let Some(line) = lines.unfinished() {
                self.matcher.unfinished(&line, position, Instant::now());
            }
        }
    }

    fn is_to_stop(&mut self, now: Instant) -> bool {
        self.matcher.check(now);
        if self.stop_at.is_none() {
            let too_long = now >= self.start + self.test.timeout + GRACE;
            self.stop_at = if self.matcher.failure().is_some() {
                Some(now + LAST_WORDS)
            } else if too_long || self.test.end == Wanted::Shown && self.matcher.all_seen() {
                Some(now)
            } else {
                None
            };
        }
        self.stop_at.is_some_and(|at| now >= at)
    }

    /// Why the run has failed, if it has.
    fn judge(&self, status: ExitStatus, measured: &Measured) -> Option<String> {
        if let Some(failure) = self.matcher.failure() {
            return Some(failure.to_owned());
        }
        let end = measured.end.as_deref();
        let ended = self.how_it_ended(status, end);
        let not_seen = self.matcher.not_seen(&format!("before the end: {ended}"));
        let is_command = !self.test.command.is_empty();
        let wrong_end = match self.test.end {
            Wanted::Shown => None,
            Wanted::End(wanted) => (end != Some(wanted)
                || status.code().map(i64::from) != measured.exit_code)
                .then(|| format!("the end is to be '{wanted}': {ended}")),
            Wanted::Status(_) if is_command && end != Some(EXIT) => {
                Some(format!("the machine ended before its command: {ended}"))
            }
            Wanted::Status(wanted) => (end != Some(EXIT) || status.code() != Some(wanted.into()))
                .then(|| format!("the exit status is to be {wanted}: {ended}")),
        };
        let reasons: Vec<String> = not_seen.into_iter().chain(wrong_end).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
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
            // No report: there was no machine.
            None => format!("it could not start{said}"),
        }
    }
}

//! One run of one machine: started, watched, stopped, judged.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use std::os::unix::process::ExitStatusExt;

use super::child::{Next, Stream, Vmm};
use super::figures::{self, Figures};
use super::lines::Lines;
use super::log::Log;
use super::matcher::{Matcher, Place, shown};
use super::test::{ENDS, Test, Wanted};
use super::{machine, tail::Tail};
use crate::cli;
use crate::event::Halt;

/// A console that says nothing for so long may be waiting at a prompt: the line is looked at unfinished.
const QUIET: Duration = Duration::from_millis(50);
/// What is printed after a failure (a call trace) belongs to it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a machine has beyond its time before it is stopped from outside: --timeout comes first.
const GRACE: Duration = Duration::from_secs(10);
/// tinyvmm's exit code with a command that did not get to its end.
const NO_STATUS: i32 = 125;

/// What came of a run.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Why it failed; `None`: it passed.
    pub(super) failure: Option<String>,
    /// It was stopped because the user wanted that.
    pub(super) interrupted: bool,
    pub(super) seconds: f64,
    /// tinyvmm's exit code; `None` if it was killed or did not start.
    pub(super) exit_code: Option<i32>,
    pub(super) figures: Figures,
    /// Kept only of failures.
    pub(super) log: Option<PathBuf>,
    /// The last lines of the console.
    pub(super) tail: Vec<String>,
}

impl Run {
    /// One that could not be.
    pub(super) fn impossible(error: &anyhow::Error) -> Self {
        Self { failure: Some(format!("{error:#}")), ..Self::default() }
    }
}

/// Runs `test` once. Its log is `logs`/`name`.log.
pub(super) fn run(
    test: &Test,
    folder: &Path,
    (logs, name): (&Path, &str),
    interrupt: &AtomicBool,
) -> Result<Run> {
    let mut log = Log::create(logs, name)?;
    let report = logs.join(format!("{name}.report.json"));
    let start = Instant::now();
    let vmm = Vmm::start(&flags(test, &report), folder);
    let watched =
        vmm.and_then(|vmm| Watch::new(test, start, &mut log).until_the_end(vmm, interrupt));
    let figures = figures::read(&report);
    let _ = std::fs::remove_file(&report);
    let mut run = watched.unwrap_or_else(|error| Run::impossible(&error));
    run.figures = figures.unwrap_or_default();
    run.seconds = start.elapsed().as_secs_f64();
    let Some(failure) = &run.failure else {
        log.remove();
        return Ok(run);
    };
    log.note(&format!("failed: {failure}"));
    let (path, error) = log.keep();
    run.log = Some(path);
    run.failure =
        Some([Some(failure.clone()), error].into_iter().flatten().collect::<Vec<_>>().join("; "));
    Ok(run)
}

fn flags(test: &Test, report: &Path) -> Vec<OsString> {
    let mut flags = test.machine.flags.clone();
    let given = |name: &str| {
        let with = format!("--{name}=");
        test.machine.flags.iter().any(|flag| flag.to_string_lossy().starts_with(&with))
    };
    if !given("no-reboot") {
        flags.push("--no-reboot".into());
    }
    flags.push(format!("--timeout={}", shown(test.timeout)).into());
    if machine::is_key("boot-report") {
        let mut flag = OsString::from("--boot-report=");
        flag.push(report);
        flags.push(flag);
    }
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
    streams: [(Lines, Place); 2],
    tail: Tail,
    /// The last that tinyvmm itself has said.
    said: Option<String>,
    /// When the machine is to be stopped, if there is a reason to.
    stop_at: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(test: &'a Test, start: Instant, log: &'a mut Log) -> Self {
        let streams = Default::default();
        let (matcher, tail) = (Matcher::new(test, start), Tail::default());
        Self { test, start, log, matcher, streams, tail, said: None, stop_at: None }
    }

    fn until_the_end(mut self, mut vmm: Vmm, interrupt: &AtomicBool) -> Result<Run> {
        let mut interrupted = false;
        let status = loop {
            match vmm.next(Instant::now() + QUIET)? {
                Next::Output(stream, bytes) => self.output(stream, &bytes),
                Next::Quiet => self.unfinished(),
                Next::Ended(status) => break status,
            }
            let now = Instant::now();
            interrupted |= interrupt.load(Ordering::Relaxed);
            if interrupted || self.is_to_stop(now) {
                vmm.stop(now);
            }
        };
        self.unfinished();
        let failure = match interrupted {
            true => Some("interrupted".to_owned()),
            false => self.judge(status),
        };
        let (exit_code, tail) = (status.code(), self.tail.into_lines());
        Ok(Run { failure, interrupted, exit_code, tail, ..Run::default() })
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.log.write(bytes);
        let now = Instant::now();
        let (lines, place) = &mut self.streams[stream as usize];
        lines.push(bytes, |line| {
            self.tail.push(line);
            match line.strip_prefix("tinyvmm: ") {
                Some(said) if stream == Stream::Stderr => self.said = Some(said.to_owned()),
                _ => self.matcher.line(line, place, now),
            }
        });
    }

    /// Looks at the lines that go on; they may be prompts, or the last ones.
    fn unfinished(&mut self) {
        for (lines, place) in &mut self.streams {
            if let Some(line) = lines.unfinished() {
                self.matcher.unfinished(&line, place, Instant::now());
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
    fn judge(&self, status: ExitStatus) -> Option<String> {
        if let Some(failure) = self.matcher.failure() {
            return Some(failure.to_owned());
        }
        let ended = self.how_it_ended(status);
        let code = status.code();
        if !self.matcher.all_seen() {
            return self.matcher.not_seen(&format!("before the end: {ended}"));
        }
        match &self.test.end {
            Wanted::Shown => None,
            Wanted::End(halt) if code == Some(halt.exit_code().into()) => None,
            Wanted::End(halt) => Some(format!("the end is to be '{}': {ended}", end_name(halt))),
            Wanted::Status(wanted) if code == Some((*wanted).into()) => None,
            Wanted::Status(_) if code == Some(NO_STATUS) => {
                Some(format!("the machine ended before its command: {ended}"))
            }
            Wanted::Status(wanted) => Some(format!("the exit status is to be {wanted}: {ended}")),
        }
    }

    fn how_it_ended(&self, status: ExitStatus) -> String {
        let said = self.said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default();
        let is_status = matches!(self.test.end, Wanted::Status(_));
        match (status.code(), status.signal()) {
            (Some(code), _) if is_status => format!("tinyvmm exits with {code}{said}"),
            (Some(code), _) if code == i32::from(Halt::Timeout.exit_code()) => {
                format!("it took longer than {}", shown(self.test.timeout))
            }
            (Some(code), _) => {
                let ends = ENDS.iter().map(|(name, halt)| (*name, halt.exit_code()));
                let others = [
                    ("an internal error", cli::EXIT_INTERNAL),
                    ("wrong flags", cli::EXIT_USAGE),
                    ("it could not start", cli::EXIT_CANNOT_START),
                    ("stopped by a signal", Halt::Stopped.exit_code()),
                ];
                let known = ends.chain(others).find(|(_, known)| i32::from(*known) == code);
                let name =
                    known.map_or_else(|| format!("exit code {code}"), |(name, _)| name.into());
                format!("{name}{said}")
            }
            (None, signal) => format!("tinyvmm was killed by signal {}", signal.unwrap_or(0)),
        }
    }
}

fn end_name(halt: &Halt) -> &'static str {
    ENDS.iter().find(|(_, end)| end == halt).map_or("another", |(name, _)| name)
}

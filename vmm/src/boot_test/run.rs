//! One run of one machine: started, watched, stopped, judged.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use std::os::unix::process::ExitStatusExt;

use super::child::{Next, Stream, Vmm};
use super::figures::{self, Figures, Measured};
use super::lines::Lines;
use super::log::Log;
use super::matcher::{Matcher, Place, shown};
use super::tail::Tail;
use super::test::{Test, Wanted};
use crate::command::EXIT_NO_STATUS;
use crate::inbox::End as Halt;

/// A console that says nothing for so long may be waiting at a prompt: the line is looked at unfinished.
const QUIET: Duration = Duration::from_millis(50);
/// What is printed after a failure (a call trace) belongs to it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a machine has beyond its time before it is stopped from outside: --timeout comes first.
const GRACE: Duration = Duration::from_secs(10);

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
    /// How the machine ended, in the boot report's words.
    pub(super) end: Option<String>,
    pub(super) figures: Figures,
    /// Kept of failures, and until it is known whether a run was within its budget.
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
    let mut watch = Watch::new(test, start, &mut log);
    let status = vmm.and_then(|vmm| watch.until_the_end(vmm, interrupt));
    let Measured { end, figures } = figures::read(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    let exit_code = status.as_ref().ok().and_then(ExitStatus::code);
    let failure = match status {
        _ if watch.interrupted => Some("interrupted".to_owned()),
        Ok(status) => watch.judge(status, end.as_deref()),
        Err(error) => Some(format!("{error:#}")),
    };
    let (interrupted, tail) = (watch.interrupted, watch.tail.into_lines());
    let mut run = Run { failure, interrupted, exit_code, end, figures, tail, ..Run::default() };
    run.seconds = start.elapsed().as_secs_f64();
    let Some(failure) = run.failure.take() else {
        run.log = Some(log.keep().0);
        return Ok(run);
    };
    // The guest has its words in it, and a terminal will show it.
    let failure = failure.replace(char::is_control, " ");
    log.note(&format!("failed: {failure}"));
    let (path, error) = log.keep();
    run.log = Some(path);
    run.failure = Some(match error {
        Some(error) => format!("{failure}; {error}"),
        None => failure,
    });
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
    streams: [(Lines, Place); 2],
    tail: Tail,
    /// The last that tinyvmm itself has said.
    said: Option<String>,
    /// The user wants an end.
    interrupted: bool,
    /// When the machine is to be stopped, if there is a reason to.
    stop_at: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(test: &'a Test, start: Instant, log: &'a mut Log) -> Self {
        let streams = Default::default();
        let (matcher, tail) = (Matcher::new(test, start), Tail::default());
        Self {
            test,
            start,
            log,
            matcher,
            streams,
            tail,
            said: None,
            interrupted: false,
            stop_at: None,
        }
    }

    fn until_the_end(&mut self, mut vmm: Vmm, interrupt: &AtomicBool) -> Result<ExitStatus> {
        loop {
            match vmm.next(Instant::now() + QUIET)? {
                Next::Output(stream, bytes) => self.output(stream, &bytes),
                Next::Quiet => self.unfinished(),
                Next::Ended(status) => {
                    self.unfinished();
                    self.last_lines();
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
    fn last_lines(&mut self) {
        let lines = self.streams.iter().filter_map(|(lines, _)| lines.unfinished());
        lines.for_each(|line| self.tail.push(&line));
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

    /// Why the run has failed, if it has. `end` is the boot report's word.
    fn judge(&self, status: ExitStatus, end: Option<&str>) -> Option<String> {
        if let Some(failure) = self.matcher.failure() {
            return Some(failure.to_owned());
        }
        let ended = self.how_it_ended(status, end);
        if !self.matcher.all_seen() {
            return self.matcher.not_seen(&format!("before the end: {ended}"));
        }
        let has_code = |wanted: u8| status.code() == Some(wanted.into());
        let is_command = !self.test.command.is_empty();
        match &self.test.end {
            Wanted::Shown => None,
            Wanted::End(halt) if has_code(halt.exit_code()) && end == Some(halt.name()) => None,
            Wanted::End(halt) => Some(format!("the end is to be '{}': {ended}", halt.name())),
            // Of a command no other end has this exit code.
            Wanted::Status(wanted) if has_code(*wanted) && (is_command || end == Some("exit")) => {
                None
            }
            Wanted::Status(_) if is_command && has_code(EXIT_NO_STATUS) => {
                Some(format!("the machine ended before its command: {ended}"))
            }
            Wanted::Status(wanted) => Some(format!("the exit status is to be {wanted}: {ended}")),
        }
    }

    fn how_it_ended(&self, status: ExitStatus, end: Option<&str>) -> String {
        let said = self.said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default();
        let Some(code) = status.code() else {
            return format!("tinyvmm was killed by signal {}", status.signal().unwrap_or(0));
        };
        match end {
            Some("exit") => format!("exit status {code}"),
            Some(end) if end == Halt::Timeout.name() => {
                format!("it took longer than {}", shown(self.test.timeout))
            }
            Some(end) => format!("{end}{said}"),
            // No report: there was no machine.
            None => format!("it could not start{said}"),
        }
    }
}

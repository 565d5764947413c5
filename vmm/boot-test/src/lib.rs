//! `tinyvmm boot-test`: boots the machines of a spec and checks what they do. docs/boot-test.md is its manual.
//!
//! `Spec::read` makes `Test`s, `schedule::run_all` has a `Runner` run each in a process of its own, and
//! `TestOutcome::judge` decides whether it has passed. The machine is not linked: its interface is the command
//! (`tinyvmm.rs`) and the boot report (`figures.rs`).

mod budget;
mod child;
mod figures;
mod input;
mod junit;
mod lines;
mod log;
mod machine;
mod matcher;
mod matrix;
mod node;
mod outcome;
mod progress;
mod results;
mod run;
mod schedule;
mod signals;
mod spec;
mod table;
mod test;
#[cfg(test)]
mod tests;
mod tinyvmm;

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueHint};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use budget::Baseline;
pub use child::die_with_runner;
use outcome::{Status, TestOutcome};
use progress::Progress;
use results::Results;
use run::{Run, Runner};
use schedule::{Capacity, Job};
use spec::Spec;
use test::Test;
use tinyvmm::Tinyvmm;

/// Exit code when a test failed or was not run, or a result could not be written.
const EXIT_FAILED: u8 = 1;
/// Exit code when the spec, the baseline or a flag is wrong.
const EXIT_USAGE: u8 = 2;
/// Exit code when this host cannot run machines.
const EXIT_CANNOT_START: u8 = 3;

/// The flags of `tinyvmm boot-test`.
#[derive(Args, Clone, Debug)]
pub struct BootTestOptions {
    /// Spec: a TOML file with the machines and what each must do
    #[arg(value_name = "SPEC", value_hint = ValueHint::FilePath)]
    spec: PathBuf,

    /// Run only machines whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,

    /// Print the names of the machines and exit
    #[arg(long)]
    list: bool,

    /// How many virtual CPUs may run at once [default: those of the host]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,

    /// Where the consoles of machines that fail are kept
    #[arg(long, value_name = "DIR", default_value = "boot-test-logs", value_hint = ValueHint::DirPath)]
    logs: PathBuf,

    /// Write the results as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    json: Option<PathBuf>,

    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    junit: Option<PathBuf>,

    /// Store the figures of machines that pass in the spec's baseline file, instead of comparing
    #[arg(long)]
    save_baseline: bool,
}

/// Parses a spec and returns the number of its machines. `printed` is the output of `--print-config=json`.
#[cfg(any(test, fuzzing))]
pub fn read_spec(text: &str, printed: &str) -> Result<usize> {
    let keys = tinyvmm::parse_keys(printed.as_bytes())?;
    Ok(Spec::parse(text, "/".into(), &keys)?.tests.len())
}

/// Runs the tests with `program`, the `tinyvmm` command. Exit code 0: all passed; 1: not all; 2: the spec is wrong; 3:
/// no machine can run here.
pub fn main(options: &BootTestOptions, program: &Path) -> ExitCode {
    let tinyvmm = Tinyvmm { program };
    let spec = read(options, &tinyvmm);
    if let (true, Ok(spec)) = (options.list, &spec) {
        show(&spec.tests.iter().map(|test| test.name.clone() + "\n").collect::<String>());
        return ExitCode::SUCCESS;
    }
    let json = results::create(options.json.as_deref());
    let junit = results::create(options.junit.as_deref());
    let mut results = Results::new(&options.spec);
    let start = Instant::now();
    let run = match (&json, &junit, &spec) {
        (Err(error), ..) | (_, Err(error), _) => Err((EXIT_FAILED, anyhow!("{error:#}"))),
        (.., Err(error)) => Err((EXIT_USAGE, anyhow!("{error:#}"))),
        (.., Ok(spec)) => run_spec(spec, options, &tinyvmm, &mut results),
    };
    results.seconds = start.elapsed().as_secs_f64();
    if let Err((_, error)) = &run {
        let tests = spec.iter().flat_map(|spec| &spec.tests);
        results.set_tests(tests.map(|test| TestOutcome::judge(test, vec![], None)).collect());
        results.error = Some(format!("{error:#}"));
    }
    let json = results::write(json.unwrap_or_default(), &results.json());
    let junit = results::write(junit.unwrap_or_default(), &junit::junit(&results));
    match &results.error {
        Some(error) => say(error),
        None => show(&table::table(&results)),
    }
    if results.interrupted {
        say("interrupted: not all machines were run");
    }
    let path = spec.as_ref().ok().and_then(|spec| spec.baseline.as_ref());
    let path = path.filter(|_| options.save_baseline && results.error.is_none());
    let saved = path.map_or(Ok(()), |path| save_baseline(path, &results.tests));
    let mut code = run.map_or_else(|(code, _)| code, |()| u8::from(!results.all_passed()));
    for error in [json, junit, saved].into_iter().filter_map(Result::err) {
        say(format_args!("{error:#}"));
        code = code.max(EXIT_FAILED);
    }
    ExitCode::from(code)
}

/// Writes `message` to stderr, unless that would block for long: a runner must not wait for a reader.
fn say(message: impl Display) {
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let stderr = std::io::stderr();
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience)).is_ok_and(|n| n > 0) {
        let _ = (&stderr).write_all(format!("tinyvmm: {message}\n").as_bytes());
    }
}

/// A reader that has gone away is not an error: the exit code has the result.
fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The spec with the machines that `options` select, checked.
fn read(options: &BootTestOptions, tinyvmm: &Tinyvmm) -> Result<Spec> {
    let named = || options.spec.display().to_string();
    let mut spec = Spec::read(&options.spec, &tinyvmm.keys()?).with_context(named)?;
    if let Some(text) = &options.only {
        spec.tests.retain(|test| test.name.contains(text.as_str()));
        ensure!(!spec.tests.is_empty(), "--only {text}: no machine has that in its name");
    }
    spec.check(tinyvmm).with_context(named)?;
    Ok(spec)
}

/// Writes the baseline; keeps its figures of machines that were not run or did not pass.
fn save_baseline(path: &Path, outcomes: &[TestOutcome]) -> Result<()> {
    let mut baseline = if path.exists() { Baseline::read(path)? } else { Baseline::default() };
    for outcome in outcomes.iter().filter(|outcome| outcome.result == Status::Passed) {
        baseline.set(outcome.name, &outcome.figures);
    }
    baseline.write(path)
}

/// Runs every test of `spec`, if this host can, with a line for each that has ended. An error has its exit code.
fn run_spec<'a>(
    spec: &'a Spec,
    options: &BootTestOptions,
    tinyvmm: &Tinyvmm,
    results: &mut Results<'a>,
) -> Result<(), (u8, anyhow::Error)> {
    let (usage, failed) = (|error| (EXIT_USAGE, error), |error| (EXIT_FAILED, error));
    let baseline = match &spec.baseline {
        Some(path) if !options.save_baseline => Some(Baseline::read(path).map_err(usage)?),
        None if options.save_baseline => {
            let add = "the spec names no file for it, add baseline = \"FILE\"";
            return Err(usage(anyhow!("--save-baseline: {add}")));
        }
        _ => None,
    };
    let host = tinyvmm.doctor().map_err(failed)?;
    let obstacles = tinyvmm::advice(&host, "unusable").join("; ");
    if !obstacles.is_empty() {
        let error = anyhow!("this host cannot run machines: {obstacles}");
        return Err((EXIT_CANNOT_START, error));
    }
    results.advice = tinyvmm::advice(&host, "limited");
    let interrupt = signals::interrupt_flag().map_err(failed)?;
    let existed = options.logs.exists();
    let logs = fs::create_dir_all(&options.logs).and_then(|()| options.logs.canonicalize());
    let logs = logs.with_context(|| format!("--logs {}", options.logs.display()));
    let logs = logs.map_err(failed)?;
    if logs.to_str().is_none() {
        return Err(failed(anyhow!("--logs {}: its path is not UTF-8", logs.display())));
    }
    let runner = Runner { program: tinyvmm.program, folder: &spec.folder, logs: &logs, interrupt };
    let repeated = |(index, test): (usize, &'a Test)| {
        (1..=test.repeat).map(move |repetition| Job { test, index, repetition })
    };
    let jobs = spec.tests.iter().enumerate().flat_map(repeated).collect();
    let mut progress = Progress::new(spec, baseline.as_ref());
    let run = |job: Job| runner.run(job.test, &log::file_name(&job));
    let done = |job: Job<'a>, run: Run| progress.add(job, run);
    schedule::run_all(jobs, Capacity::of_host(options.jobs), interrupt, run, done);
    results.set_tests(progress.finish());
    results.interrupted = results.not_run > 0 && interrupt.load(Ordering::Relaxed);
    if !existed {
        let _ = fs::remove_dir(&options.logs); // unless a log was kept
    }
    Ok(())
}

//! `tinyvmm boot-test`: boots the machines of a spec and checks what they do. docs/boot-test.md tells how.
//!
//! [`spec::Spec::read`] makes [`test::Test`]s, [`schedule::run_all`] has each [`run::run`] as a process
//! of its own, [`outcome::Outcome::judge`] says what came of it.

mod budget;
mod child;
mod figures;
mod json;
mod junit;
mod lines;
mod log;
mod machine;
mod matcher;
mod matrix;
mod node;
mod outcome;
mod run;
mod schedule;
mod spec;
mod table;
mod tail;
mod test;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueHint};

use crate::inbox::Inbox as Events;
use crate::{cli, doctor, host, logger};
use budget::Baseline;
pub use child::die_with_runner;
use outcome::{Outcome, Status};
use run::Run;
use schedule::{Budget, Job};
use spec::Spec;

/// Exit code when a test failed or was not run, or a result could not be written.
const EXIT_FAILED: u8 = 1;

/// What `tinyvmm boot-test` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
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

/// Reads the text of a spec, and says how many machines it describes.
#[cfg(fuzzing)]
pub fn read_spec(text: &str) -> Result<usize> {
    Ok(Spec::parse(text, "/".into())?.tests.len())
}

/// Runs the tests. Exit code 0: all passed; 1: not all; 2: the spec is wrong; 3: no machine can run here.
pub fn main(options: &Options) -> ExitCode {
    let spec = match Spec::read(&options.spec).and_then(|spec| only(spec, options)) {
        Ok(spec) => spec,
        Err(error) => return fail(&error, cli::EXIT_USAGE),
    };
    if options.list {
        let names: String = spec.tests.iter().map(|test| format!("{}\n", test.name)).collect();
        return show(&names, ExitCode::SUCCESS);
    }
    let baseline = match baseline(&spec, options) {
        Ok(baseline) => baseline,
        Err(error) => return fail(&error, cli::EXIT_USAGE),
    };
    if let Err(error) = host::open_kvm() {
        return fail(&error, cli::EXIT_CANNOT_START);
    }
    match run_spec(&spec, baseline.as_ref(), options) {
        Ok(code) => code,
        Err(error) => fail(&error, cli::EXIT_INTERNAL),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    logger::tell(format_args!("{error:#}"));
    ExitCode::from(code)
}

/// A reader that has gone away is not an error; the exit code still tells.
fn show(text: &str, code: ExitCode) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

/// What figures are compared with, if with any.
fn baseline(spec: &Spec, options: &Options) -> Result<Option<Baseline>> {
    match &spec.baseline {
        None => anyhow::ensure!(
            !options.save_baseline,
            "--save-baseline: the spec names no file for it, add baseline = \"FILE\""
        ),
        Some(path) if !options.save_baseline => return Baseline::read(path).map(Some),
        Some(_) => {}
    }
    Ok(None)
}

fn only(mut spec: Spec, options: &Options) -> Result<Spec> {
    if let Some(text) = &options.only {
        spec.tests.retain(|test| test.name.contains(text.as_str()));
        anyhow::ensure!(!spec.tests.is_empty(), "--only {text}: no machine has that in its name");
    }
    Ok(spec)
}

fn run_spec(spec: &Spec, baseline: Option<&Baseline>, options: &Options) -> Result<ExitCode> {
    // Better now than after an hour of tests.
    let json = options.json.as_deref().map(create).transpose()?;
    let junit = options.junit.as_deref().map(create).transpose()?;
    let start = Instant::now();
    let existed = options.logs.exists();
    let (runs, interrupted) = run_tests(spec, options)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut outcomes: Vec<Outcome> = spec
        .tests
        .iter()
        .zip(runs)
        .map(|(test, runs)| Outcome::judge(test, runs, baseline))
        .collect();
    outcomes.iter_mut().for_each(Outcome::forget_logs);
    if !existed {
        let _ = fs::remove_dir(&options.logs); // unless a log was kept
    }
    let mut written = Ok(());
    if let Some((path, file)) = json {
        let text = json::json(&options.spec, &outcomes, seconds, interrupted)?;
        written = written.and(write(path, file, &text));
    }
    if let Some((path, file)) = junit {
        let name = options.spec.file_stem().unwrap_or_default().to_string_lossy();
        written = written.and(write(path, file, &junit::junit(&name, &outcomes, seconds)));
    }
    if let (true, Some(path)) = (options.save_baseline, &spec.baseline) {
        written = written.and(save_baseline(path, &outcomes));
    }
    let passed = outcomes.iter().all(|outcome| outcome.status == Status::Passed);
    let code = ExitCode::from(if passed { 0 } else { EXIT_FAILED });
    show(&table::table(&outcomes, seconds), code);
    if interrupted {
        logger::tell("interrupted: not all machines were run");
    }
    written.map(|()| code)
}

fn create(path: &Path) -> Result<(&Path, File)> {
    let file = File::create(path).with_context(|| format!("result {}", path.display()))?;
    Ok((path, file))
}

fn write(path: &Path, mut file: File, text: &str) -> Result<()> {
    file.write_all(text.as_bytes()).with_context(|| format!("result {}", path.display()))
}

/// Keeps what is known of machines that were not run or did not pass.
fn save_baseline(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut baseline = if path.exists() { Baseline::read(path)? } else { Baseline::new() };
    for outcome in outcomes.iter().filter(|outcome| outcome.status == Status::Passed) {
        baseline.set(&outcome.test.name, &outcome.figures);
    }
    baseline.write(path)
}

/// Runs every test as often as it wants; the runs of each, and whether a signal ended it all.
fn run_tests(spec: &Spec, options: &Options) -> Result<(Vec<Vec<Run>>, bool)> {
    let events = Events::new()?;
    let interrupt = AtomicBool::new(false);
    let logs = fs::create_dir_all(&options.logs).and_then(|()| options.logs.canonicalize());
    let logs = logs.with_context(|| format!("--logs {}", options.logs.display()))?;
    let mut jobs = Vec::new();
    for (index, test) in spec.tests.iter().enumerate() {
        jobs.extend((1..=test.repeat).map(|repetition| Job { test, index, repetition }));
    }
    let (total, mut ended) = (jobs.len(), 0);
    let mut runs: Vec<Vec<Run>> = spec.tests.iter().map(|_| Vec::new()).collect();
    let progress = std::io::stderr().is_terminal();
    let run = |job: Job| {
        let ran = run::run(job.test, &spec.folder, (&logs, &file_name(job)), &interrupt);
        ran.unwrap_or_else(|error| Run::impossible(&error))
    };
    let done = |job: Job, mut run: Run| {
        ended += 1;
        if progress {
            let result =
                run.failure.as_deref().map_or("passed".into(), |why| format!("failed: {why}"));
            logger::tell(format_args!("[{ended}/{total}] {}: {result}", job.test.name));
        }
        if let Some(runs) = runs.get_mut(job.index) {
            // One of a machine is enough to show.
            if run.failure.is_none() || runs.iter().any(|run| run.failure.is_some()) {
                run.tail = Vec::new();
            }
            runs.push(run);
        }
    };
    schedule::run_all(jobs, budget_of_host(options), (&events, &interrupt), run, done);
    Ok((runs, interrupt.into_inner()))
}

fn file_name(job: Job) -> String {
    let name = log::file_name(&job.test.name, job.index);
    if job.test.repeat == 1 { name } else { format!("{name}+{}", job.repetition) }
}

fn budget_of_host(options: &Options) -> Budget {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = doctor::available_mib().map_or(u64::MAX, |mib| mib << 20);
    let cpus = options.jobs.unwrap_or(u32::try_from(cpus).unwrap_or(u32::MAX));
    Budget { cpus, memory }
}

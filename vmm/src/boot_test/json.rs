//! The results for programs; docs/boot-test.md tells what is in them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::figures::{Figure, Figures, Summary};
use super::outcome::{Outcome, Status};
use super::run::Run;

const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Results<'a> {
    schema: u32,
    version: &'static str,
    spec: String,
    seconds: f64,
    interrupted: bool,
    passed: usize,
    failed: usize,
    not_run: usize,
    tests: Vec<OneTest<'a>>,
}

#[derive(Serialize)]
struct OneTest<'a> {
    name: &'a str,
    result: Status,
    seconds: f64,
    reasons: &'a [String],
    notes: &'a [String],
    figures: &'a BTreeMap<Figure, Summary>,
    runs: Vec<OneRun<'a>>,
}

#[derive(Serialize)]
struct OneRun<'a> {
    result: Status,
    seconds: f64,
    exit_code: Option<i32>,
    end: Option<&'a str>,
    reason: Option<&'a str>,
    log: Option<String>,
    figures: &'a Figures,
}

impl<'a> OneRun<'a> {
    fn of(run: &'a Run) -> Self {
        let result = match (&run.failure, run.interrupted) {
            (_, true) => Status::NotRun,
            (Some(_), false) => Status::Failed,
            (None, false) => Status::Passed,
        };
        Self {
            result,
            seconds: run.seconds,
            exit_code: run.exit_code,
            end: run.end.as_deref(),
            reason: run.failure.as_deref(),
            log: run.log.as_ref().map(|log| log.display().to_string()),
            figures: &run.figures,
        }
    }
}

/// All results as a JSON text.
pub(super) fn json(
    spec: &Path,
    outcomes: &[Outcome],
    seconds: f64,
    interrupted: bool,
) -> serde_json::Result<String> {
    let count = |status| outcomes.iter().filter(|outcome| outcome.status == status).count();
    let tests = outcomes.iter().map(|outcome| OneTest {
        name: &outcome.test.name,
        result: outcome.status,
        seconds: outcome.seconds(),
        reasons: &outcome.reasons,
        notes: &outcome.notes,
        figures: &outcome.figures,
        runs: outcome.runs.iter().map(OneRun::of).collect(),
    });
    let results = Results {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        spec: spec.display().to_string(),
        seconds,
        interrupted,
        passed: count(Status::Passed),
        failed: count(Status::Failed),
        not_run: count(Status::NotRun),
        tests: tests.collect(),
    };
    Ok(serde_json::to_string_pretty(&results)? + "\n")
}

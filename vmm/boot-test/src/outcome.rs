//! The outcome of a test, over all its runs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::budget::{Baseline, Verdict};
use super::figures::{self, Summaries};
use super::run::Run;
use super::test::Test;

/// Whether a test, or one run of it, has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    #[default]
    Passed,
    Failed,
    /// Not run, or interrupted.
    NotRun,
}

impl Status {
    /// The name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not run",
        }
    }
}

/// The reasons of machines that could not start, with the first machine for each.
pub type ShownReasons<'a> = BTreeMap<Vec<String>, &'a str>;

/// A test and its outcome, also the JSON of it.
#[derive(Debug, Serialize)]
pub struct TestOutcome<'a> {
    pub name: &'a str,
    pub result: Status,
    /// Seconds of all runs together.
    pub seconds: f64,
    /// Why the test failed.
    pub reasons: Vec<String>,
    /// What could not be checked.
    pub notes: Vec<String>,
    pub figures: Summaries,
    /// In the order of their ends.
    pub runs: Vec<Run>,
}

impl<'a> TestOutcome<'a> {
    /// Judges the `runs` of `test`, of which some may be missing. Removes logs that are not needed.
    pub fn judge(test: &'a Test, runs: Vec<Run>, baseline: Option<&Baseline>) -> Self {
        let figures = figures::summaries(runs.iter().map(|run| &run.figures));
        let seconds = runs.iter().map(|run| run.seconds).sum();
        let failed: Vec<&Run> = runs.iter().filter(|run| run.result == Status::Failed).collect();
        let mut reasons = reasons(&failed, runs.len());
        let complete = runs.len() == test.repeat as usize
            && runs.iter().all(|run| run.result != Status::NotRun);
        let mut verdict = Verdict::default();
        // Figures of failed and interrupted runs are not compared.
        if failed.is_empty() && complete {
            verdict.check_limits(&test.limits, &figures);
            if let Some(baseline) = baseline {
                verdict.check_baseline(baseline, &test.name, &test.tolerance, &figures);
            }
        }
        reasons.append(&mut verdict.failures);
        let result = match (reasons.is_empty(), complete) {
            (false, _) => Status::Failed,
            (true, true) => Status::Passed,
            (true, false) => Status::NotRun,
        };
        let (name, notes) = (test.name.as_str(), verdict.notes);
        let mut outcome = Self { name, result, seconds, reasons, notes, figures, runs };
        outcome.remove_logs();
        outcome
    }

    /// Removes the logs of runs that passed, unless all did and the test failed.
    fn remove_logs(&mut self) {
        let over_budget = self.result == Status::Failed
            && self.runs.iter().all(|run| run.result == Status::Passed);
        let passed = self.runs.iter_mut().filter(|run| run.result == Status::Passed);
        for log in passed.filter(|_| !over_budget).filter_map(|run| run.log.take()) {
            let _ = std::fs::remove_file(log);
        }
    }

    /// The console's last lines in the first run that did not pass.
    pub fn last_lines(&self) -> &[String] {
        let not_passed = self.runs.iter().find(|run| run.result != Status::Passed);
        not_passed.map_or(&[], |run| &run.last_lines)
    }

    /// Whether no run has had a machine.
    pub fn never_started(&self) -> bool {
        self.result == Status::Failed && self.runs.iter().all(|run| run.end.is_none())
    }

    /// The reasons, where a reason that is in `shown` is replaced by a reference to the machine shown with it.
    pub fn reasons_after(&self, shown: &mut ShownReasons<'a>) -> Vec<String> {
        let first = match self.never_started() {
            true => shown.entry(self.reasons.clone()).or_insert(self.name),
            false => self.name,
        };
        if first == self.name {
            return self.reasons.clone();
        }
        vec![format!("it could not start, as '{first}'")]
    }

    /// The paths of the logs that were kept.
    pub fn logs(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| Some(run.log.as_ref()?.display().to_string()))
    }
}

/// The reasons of failed runs, each once.
fn reasons(failed: &[&Run], runs: usize) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in failed.iter().filter_map(|run| run.reason.as_deref()) {
        *counts.entry(reason).or_default() += 1;
    }
    let counted = |(reason, count)| match runs {
        0 | 1 => String::from(reason),
        _ => format!("{count} of {runs} runs: {reason}"),
    };
    counts.into_iter().map(counted).collect()
}

//! What came of a test, over all its runs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::budget::{self, Baseline, Verdict};
use super::figures::{self, Figure, Summary};
use super::run::Run;
use super::test::Test;

/// Whether a test has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Status {
    Passed,
    Failed,
    /// Not at all, or not to its end.
    NotRun,
}

impl Status {
    /// As people read it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not run",
        }
    }
}

/// A test and what came of it.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub(super) test: &'a Test,
    /// In the order of their ends.
    pub(super) runs: Vec<Run>,
    pub(super) status: Status,
    /// Why it failed.
    pub(super) reasons: Vec<String>,
    /// What else is to be known.
    pub(super) notes: Vec<String>,
    pub(super) figures: BTreeMap<Figure, Summary>,
}

impl<'a> Outcome<'a> {
    /// Judges the `runs` of `test`, which may be less than were wanted.
    pub(super) fn judge(test: &'a Test, runs: Vec<Run>, baseline: Option<&Baseline>) -> Self {
        let figures = figures::summaries(runs.iter().map(|run| &run.figures));
        let failed: Vec<&Run> =
            runs.iter().filter(|run| run.failure.is_some() && !run.interrupted).collect();
        let mut reasons = reasons(&failed, runs.len());
        let complete =
            runs.len() == test.repeat as usize && runs.iter().all(|run| !run.interrupted);
        let mut notes = Vec::new();
        // Figures of runs that failed or were cut short say nothing.
        if failed.is_empty() && complete {
            let mut add = |mut verdict: Verdict| {
                reasons.append(&mut verdict.failures);
                notes.append(&mut verdict.notes);
            };
            add(budget::check_limits(&test.limits, &figures));
            if let Some(baseline) = baseline {
                add(budget::check_baseline(baseline, &test.name, &test.tolerance, &figures));
            }
        }
        let status = match (reasons.is_empty(), complete) {
            (false, _) => Status::Failed,
            (true, true) => Status::Passed,
            (true, false) => Status::NotRun,
        };
        Self { test, runs, status, reasons, notes, figures }
    }

    /// Removes the logs of runs that did not fail, unless that is what the test did with all of them.
    pub(super) fn forget_logs(&mut self) {
        let any_failed = self.runs.iter().any(|run| run.failure.is_some());
        if self.status == Status::Failed && !any_failed {
            return; // it cost more than its budget
        }
        let logs = self.runs.iter_mut().filter(|run| run.failure.is_none());
        for log in logs.filter_map(|run| run.log.take()) {
            let _ = std::fs::remove_file(log);
        }
    }

    /// How long its runs took together.
    pub(super) fn seconds(&self) -> f64 {
        self.runs.iter().map(|run| run.seconds).sum()
    }

    /// The console's last lines in the first run that failed.
    pub(super) fn tail(&self) -> &[String] {
        let failed = self.runs.iter().find(|run| run.failure.is_some());
        failed.map_or(&[], |run| &run.tail)
    }

    /// Logs that were kept, as text.
    pub(super) fn logs(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| Some(run.log.as_ref()?.display().to_string()))
    }
}

/// Why the runs failed, each reason once.
fn reasons(failed: &[&Run], runs: usize) -> Vec<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for reason in failed.iter().filter_map(|run| run.failure.as_deref()) {
        match counts.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason, 1)),
        }
    }
    let told = |(reason, count): (&str, usize)| match runs {
        0 | 1 => reason.to_owned(),
        _ => format!("{count} of {runs} runs: {reason}"),
    };
    counts.into_iter().map(told).collect()
}

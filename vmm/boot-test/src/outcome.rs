//! What came of a test, over all its runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Serialize, Serializer};

use super::budget::{self, Baseline, Verdict};
use super::figures::{self, Figure, Summary};
use super::run::Run;
use super::test::Test;

/// Whether a test, or one run of it, has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Status {
    #[default]
    Passed,
    Failed,
    /// Not at all, or not to its end.
    NotRun,
}

impl Status {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not run",
        }
    }
}

/// A test and what came of it, as it is in the JSON, too.
#[derive(Debug, Serialize)]
pub(super) struct Outcome<'a> {
    #[serde(rename = "name", serialize_with = "name_only")]
    pub(super) test: &'a Test,
    pub(super) result: Status,
    /// Of all runs together.
    pub(super) seconds: f64,
    /// Why it failed.
    pub(super) reasons: Vec<String>,
    /// What could not be checked.
    pub(super) notes: Vec<String>,
    pub(super) figures: BTreeMap<Figure, Summary>,
    /// In the order of their ends.
    pub(super) runs: Vec<Run>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's interface")]
fn name_only<S: Serializer>(test: &&Test, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&test.name)
}

impl<'a> Outcome<'a> {
    /// Judges the `runs` of `test`, which may be fewer than were wanted. Removes the logs that are not needed.
    pub(super) fn judge(test: &'a Test, runs: Vec<Run>, baseline: Option<&Baseline>) -> Self {
        let figures = figures::summaries(runs.iter().map(|run| &run.figures));
        let seconds = runs.iter().map(|run| run.seconds).sum();
        let failed: Vec<&Run> = runs.iter().filter(|run| run.result == Status::Failed).collect();
        let mut reasons = reasons(&failed, runs.len());
        let complete = runs.len() == test.repeat as usize
            && runs.iter().all(|run| run.result != Status::NotRun);
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
        let result = match (reasons.is_empty(), complete) {
            (false, _) => Status::Failed,
            (true, true) => Status::Passed,
            (true, false) => Status::NotRun,
        };
        let mut outcome = Self { test, result, seconds, reasons, notes, figures, runs };
        outcome.remove_logs();
        outcome
    }

    /// Removes the logs of runs that passed, unless all did and the test failed.
    fn remove_logs(&mut self) {
        if self.result == Status::Failed && self.first_not_passed().is_none() {
            return; // the machine cost more than its budget
        }
        let logs = self.runs.iter_mut().filter(|run| run.result == Status::Passed);
        for log in logs.filter_map(|run| run.log.take()) {
            let _ = std::fs::remove_file(log);
        }
    }

    fn first_not_passed(&self) -> Option<&Run> {
        self.runs.iter().find(|run| run.result != Status::Passed)
    }

    /// The console's last lines in the first run that did not pass.
    pub(super) fn last_lines(&self) -> &[String] {
        self.first_not_passed().map_or(&[], |run| &run.last_lines)
    }

    /// Whether it failed before there was a machine, in all runs.
    pub(super) fn never_started(&self) -> bool {
        self.result == Status::Failed && self.runs.iter().all(|run| run.end.is_none())
    }

    /// Logs that were kept, as text.
    pub(super) fn logs(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| Some(run.log.as_ref()?.display().to_string()))
    }
}

/// Which reasons were shown already, so that what keeps many machines from starting is shown once.
#[derive(Default)]
pub(super) struct ShownReasons<'a>(BTreeMap<Vec<String>, &'a str>);

impl<'a> ShownReasons<'a> {
    /// The reasons of `outcome` for a reader who has seen those of the outcomes before it.
    pub(super) fn next(&mut self, outcome: &Outcome<'a>) -> Vec<String> {
        if !outcome.never_started() {
            return outcome.reasons.clone();
        }
        match self.0.entry(outcome.reasons.clone()) {
            Entry::Occupied(first) => vec![format!("it could not start, as '{}'", first.get())],
            Entry::Vacant(entry) => {
                entry.insert(&outcome.test.name);
                outcome.reasons.clone()
            }
        }
    }
}

/// Why the runs failed, each reason once.
fn reasons(failed: &[&Run], runs: usize) -> Vec<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for reason in failed.iter().filter_map(|run| run.reason.as_deref()) {
        match counts.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason, 1)),
        }
    }
    let counted = |(reason, count): (&str, usize)| match runs {
        0 | 1 => reason.to_owned(),
        _ => format!("{count} of {runs} runs: {reason}"),
    };
    counts.into_iter().map(counted).collect()
}

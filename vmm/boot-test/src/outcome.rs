//! What came of a test, over all its runs.

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
    /// Not at all, or not to its end.
    NotRun,
}

impl Status {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not run",
        }
    }
}

/// Why machines could not start, and the first that could not for these reasons.
pub type ShownReasons<'a> = BTreeMap<Vec<String>, &'a str>;

/// A test and what came of it, as it is in the JSON, too.
#[derive(Debug, Serialize)]
pub struct Outcome<'a> {
    pub name: &'a str,
    pub result: Status,
    /// Of all runs together.
    pub seconds: f64,
    /// Why it failed.
    pub reasons: Vec<String>,
    /// What could not be checked.
    pub notes: Vec<String>,
    pub figures: Summaries,
    /// In the order of their ends.
    pub runs: Vec<Run>,
}

impl<'a> Outcome<'a> {
    /// Judges the `runs` of `test`, which may be fewer than were wanted. Removes the logs that are not needed.
    pub fn judge(test: &'a Test, runs: Vec<Run>, baseline: Option<&Baseline>) -> Self {
        let figures = figures::summaries(runs.iter().map(|run| &run.figures));
        let seconds = runs.iter().map(|run| run.seconds).sum();
        let failed: Vec<&Run> = runs.iter().filter(|run| run.result == Status::Failed).collect();
        let mut reasons = reasons(&failed, runs.len());
        let complete = runs.len() == test.repeat as usize
            && runs.iter().all(|run| run.result != Status::NotRun);
        let mut verdict = Verdict::default();
        // Figures of runs that failed or were cut short say nothing.
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

    /// Whether it failed before there was a machine, in all runs.
    pub fn never_started(&self) -> bool {
        self.result == Status::Failed && self.runs.iter().all(|run| run.end.is_none())
    }

    /// The reasons for a reader who has seen what is in `shown`: what keeps many machines from starting is shown
    /// with the first of them.
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

    /// Logs that were kept, as text.
    pub fn logs(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| Some(run.log.as_ref()?.display().to_string()))
    }
}

/// Why the runs failed, each reason once.
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

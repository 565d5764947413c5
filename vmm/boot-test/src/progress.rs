//! Collects runs, and shows a line for each machine as it ends.

use super::budget::Baseline;
use super::outcome::{Outcome, ShownReasons, Status};
use super::run::Run;
use super::schedule::Job;
use super::spec::Spec;
use super::{say, table};

/// Runs and outcomes so far, of each test of the spec.
pub(super) struct Progress<'a, 'b> {
    spec: &'a Spec,
    baseline: Option<&'b Baseline>,
    runs: Vec<Vec<Run>>,
    outcomes: Vec<Option<Outcome<'a>>>,
    shown: ShownReasons<'a>,
}

impl<'a, 'b> Progress<'a, 'b> {
    /// Before the first run. Figures are compared with those of `baseline`.
    pub(super) fn new(spec: &'a Spec, baseline: Option<&'b Baseline>) -> Self {
        let runs = spec.tests.iter().map(|_| Vec::new()).collect();
        let outcomes = spec.tests.iter().map(|_| None).collect();
        Self { spec, baseline, runs, outcomes, shown: ShownReasons::default() }
    }

    /// Adds a run. The last one of a test decides what came of it.
    pub(super) fn add(&mut self, job: Job<'a>, mut run: Run) {
        let Some(runs) = self.runs.get_mut(job.index) else { return };
        // The console of one run is enough to show.
        let passed = |run: &Run| run.result == Status::Passed;
        if passed(&run) || !runs.iter().all(passed) {
            run.last_lines = Vec::new();
        }
        runs.push(run);
        if runs.len() < job.test.repeat as usize {
            return;
        }
        let outcome = Outcome::judge(job.test, std::mem::take(runs), self.baseline);
        if outcome.result != Status::NotRun {
            let ended = self.outcomes.iter().flatten().count() + 1;
            let line = table::line(&outcome, &mut self.shown);
            say(format_args!("[{ended}/{}] {line}", self.spec.tests.len()));
        }
        if let Some(place) = self.outcomes.get_mut(job.index) {
            *place = Some(outcome);
        }
    }

    /// What came of every test, in the order of the spec.
    pub(super) fn finish(self) -> Vec<Outcome<'a>> {
        let baseline = self.baseline;
        let judge = |((outcome, runs), test): ((Option<_>, _), _)| {
            outcome.unwrap_or_else(|| Outcome::judge(test, runs, baseline))
        };
        self.outcomes.into_iter().zip(self.runs).zip(&self.spec.tests).map(judge).collect()
    }
}

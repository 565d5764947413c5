//! Collects runs, and prints a line for each machine as it ends.

use super::budget::Baseline;
use super::outcome::{ShownReasons, Status, TestOutcome};
use super::run::Run;
use super::say;
use super::schedule::Job;
use super::spec::Spec;

/// The runs and outcomes so far, for each test of the spec.
pub struct Progress<'a, 'b> {
    spec: &'a Spec,
    baseline: Option<&'b Baseline>,
    runs: Vec<Vec<Run>>,
    outcomes: Vec<Option<TestOutcome<'a>>>,
    shown: ShownReasons<'a>,
}

impl<'a, 'b> Progress<'a, 'b> {
    /// Starts without runs. Figures are compared with those of `baseline`.
    pub fn new(spec: &'a Spec, baseline: Option<&'b Baseline>) -> Self {
        let runs = spec.tests.iter().map(|_| vec![]).collect();
        let outcomes = spec.tests.iter().map(|_| None).collect();
        Self { spec, baseline, runs, outcomes, shown: ShownReasons::default() }
    }

    /// Adds a run. The last run of a test completes its outcome.
    pub fn add(&mut self, job: Job<'a>, mut run: Run) {
        let runs = &mut self.runs[job.index];
        // The console of one failed run is enough.
        let passed = |run: &Run| run.result == Status::Passed;
        if passed(&run) || !runs.iter().all(passed) {
            run.last_lines = Vec::new();
        }
        runs.push(run);
        if runs.len() < job.test.repeat as usize {
            return;
        }
        let outcome = TestOutcome::judge(job.test, std::mem::take(runs), self.baseline);
        if outcome.result != Status::NotRun {
            let ended = self.outcomes.iter().flatten().count() + 1;
            let (name, total) = (outcome.name, self.spec.tests.len());
            let what = match outcome.reasons_after(&mut self.shown).join("; ") {
                none if none.is_empty() => format!("passed in {:.1} s", outcome.seconds),
                reasons => format!("failed: {reasons}"),
            };
            say(format_args!("[{ended}/{total}] {name}: {what}"));
        }
        self.outcomes[job.index] = Some(outcome);
    }

    /// The outcomes of all tests, in the order of the spec.
    pub fn finish(self) -> Vec<TestOutcome<'a>> {
        let baseline = self.baseline;
        let judge = |((outcome, runs), test): ((Option<_>, _), _)| {
            outcome.unwrap_or_else(|| TestOutcome::judge(test, runs, baseline))
        };
        self.outcomes.into_iter().zip(self.runs).zip(&self.spec.tests).map(judge).collect()
    }
}

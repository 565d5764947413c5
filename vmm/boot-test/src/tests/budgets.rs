//! Limits, baselines, and what they say of a test.

use super::super::budget::{Baseline, Verdict, shown};
use super::super::figures::{Figure, INIT_MS, Summaries, Summary};
use super::super::outcome::{Status, TestOutcome};
use super::super::run::Run;
use super::super::test::Test;
use super::test_of;

fn check_limits(test: &Test, found: &Summaries) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.check_limits(&test.limits, found);
    verdict
}

/// `keys` are the spec's.
fn check_baseline(baseline: &Baseline, name: &str, keys: &str, found: &Summaries) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.check_baseline(baseline, name, &test_of(keys).tolerance, found);
    verdict
}

fn found(figures: &[(Figure, f64)]) -> Summaries {
    let summary = |value: f64| Summary { median: value, p99: value * 2.0 };
    figures.iter().map(|(figure, value)| (*figure, summary(*value))).collect()
}

#[test]
fn a_limit_is_for_the_median_and_another_for_p99() {
    let test = test_of("budget = { exits = 100, init-ms = { median = 50, p99 = 99.5 } }");
    let check = |exits, ms| {
        let figures = found(&[("exits", exits), (INIT_MS, ms)]);
        check_limits(&test, &figures).failures
    };
    assert_eq!(check(100.0, 49.0), [""; 0]);
    assert_eq!(check(101.0, 49.0), ["exits is 101, the budget is 100"]);
    assert_eq!(check(100.0, 49.9), ["init-ms p99 is 99.8, the budget is 99.5"]);
    assert_eq!(check(100.0, 51.0).len(), 2);
}

#[test]
fn a_figure_that_is_missing_fails_unless_it_is_not_had_everywhere() {
    let test = test_of("budget = { exits = 100, instructions = 1 }");
    let verdict = check_limits(&test, &Summaries::new());
    assert_eq!(verdict.failures.len(), 1, "{verdict:?}");
    assert!(verdict.failures[0].starts_with("exits was not measured"), "{verdict:?}");
    assert!(verdict.notes[0].starts_with("instructions was not measured"), "{verdict:?}");
}

fn stored(exits: f64, ms: f64) -> Baseline {
    let mut baseline = Baseline::default();
    baseline.set("m", &found(&[("exits", exits), (INIT_MS, ms)]));
    baseline
}

#[test]
fn a_baseline_tolerates_what_the_spec_says() {
    let failures = |keys: &str, exits, ms| {
        let figures = found(&[("exits", exits), (INIT_MS, ms)]);
        check_baseline(&stored(1000.0, 200.0), "m", keys, &figures).failures
    };
    assert_eq!(failures("", 1100.0, 220.0), [""; 0], "10% if nothing is said");
    let expected = "exits is 1101, the baseline is 1000 and 10% more are tolerated";
    assert_eq!(failures("", 1101.0, 1.0), [expected]);
    assert_eq!(failures("tolerance = '50%'", 1500.0, 300.0), [""; 0]);
    assert_eq!(failures("tolerance = '0%'", 1000.0, 201.0).len(), 1);
    let only = "tolerance = { exits = '1%' }";
    assert_eq!(failures(only, 1010.0, 9999.0), [""; 0], "the other one is not compared");
    assert_eq!(failures(only, 1011.0, 1.0).len(), 1);
}

#[test]
fn what_cannot_be_compared_is_noted() {
    let figures = found(&[("exits", 1.0)]);
    let notes = |name| check_baseline(&stored(1.0, 1.0), name, "", &figures).notes;
    assert_eq!(notes("m"), ["init-ms is in the baseline and was not measured"]);
    assert_eq!(notes("other"), ["not in the baseline: --save-baseline adds it"]);
}

#[test]
fn a_baseline_is_read_back() {
    let folder = std::env::temp_dir().join(format!("tinyvmm-baseline-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("baseline.json");
    stored(1000.0, 200.5).write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"init-ms\": 200.5"), "{text}");
    let figures = found(&[("exits", 1200.0), (INIT_MS, 1.0)]);
    let read = Baseline::read(&path).unwrap();
    let verdict = check_baseline(&read, "m", "", &figures);
    assert_eq!(verdict.failures.len(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}

fn ran(failure: Option<&str>, exits: f64) -> Run {
    let result = if failure.is_some() { Status::Failed } else { Status::Passed };
    let (reason, figures) = (failure.map(Into::into), [("exits", exits)].into());
    Run { result, reason, figures, ..Run::default() }
}

#[test]
fn runs_are_judged_together() {
    let test = test_of("repeat = 3\nbudget = { exits = 10 }");
    let judge = |runs| TestOutcome::judge(&test, runs, None);
    let outcome = judge(vec![ran(None, 9.0), ran(None, 99.0), ran(None, 10.0)]);
    assert_eq!((outcome.result, outcome.figures["exits"].median), (Status::Passed, 10.0));
    let outcome = judge(vec![ran(None, 9.0), ran(None, 11.0), ran(None, 11.0)]);
    assert_eq!(outcome.result, Status::Failed);
    assert_eq!(outcome.reasons, ["exits is 11, the budget is 10"]);
    let outcome = judge(vec![ran(None, 99.0), ran(Some("why"), 99.0), ran(Some("why"), 99.0)]);
    assert_eq!(outcome.reasons, ["2 of 3 runs: why"]);
    let outcome = judge(vec![ran(None, 99.0)]);
    assert_eq!((outcome.result, outcome.reasons.len()), (Status::NotRun, 0));
}

#[test]
fn machines_whose_time_counts_run_alone() {
    assert!(test_of("budget = { init-ms = 1 }").alone);
    assert!(!test_of("budget = { exits = 1 }").alone);
    assert!(!test_of("budget = { init-ms = 1 }\nalone = false").alone);
    let with_baseline = |keys| {
        let spec = format!("baseline = 'b'\n[[machine]]\nname = 'm'\nkernel = 'k'\n{keys}");
        super::tests_of(&spec).remove(0).alone
    };
    assert!(with_baseline(""));
    assert!(!with_baseline("tolerance = { exits = '1%' }"));
}

#[test]
fn figures_are_shown_with_the_digits_that_count() {
    assert_eq!(
        [shown(2725.0), shown(12.34), shown(1234.5), shown(0.0)],
        ["2725", "12.3", "1234", "0"]
    );
}

//! The results as a table for people.

use std::fmt::Write;

use super::budget::shown;
use super::figures::FIGURES;
use super::outcome::{ShownReasons, Status, TestOutcome};
use super::results::Results;

/// Titles of the columns, of which the third to the sixth are those of [`FIGURES`].
const HEAD: [&str; 7] = ["RESULT", "SECONDS", "INIT-MS", "INIT-EXITS", "EXITS", "MIB", "NAME"];
/// Most machines whose console is shown, lines of each, and characters of a line.
const MAX_CONSOLES: usize = 20;
const MAX_LINES: usize = 15;
const MAX_LINE: usize = 200;

/// A line for each test with its reasons and notes below it, the consoles of failed ones, and the totals.
pub fn table(results: &Results) -> String {
    let mut shown = ShownReasons::default();
    let mut rows = vec![(HEAD.map(String::from), vec![])];
    rows.extend(results.tests.iter().map(|test| (row(test), details(test, &mut shown))));
    let width = |column: usize| rows.iter().map(|(row, _)| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (1..HEAD.len() - 1).map(width).collect();
    let mut text = String::new();
    for ([result, cells @ .., name], details) in &rows {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:>width$}"));
        let _ = writeln!(text, "{result:<w$}{}  {name}", cells.collect::<String>(), w = width(0));
        text.extend(details.iter().map(|line| format!("         {line}\n")));
    }
    text += &consoles(&results.tests);
    if !results.all_passed() {
        text.extend(results.advice.iter().map(|advice| format!("note: {advice}\n")));
    }
    let _ = write!(text, "{} passed", results.passed);
    for (count, name) in [(results.failed, "failed"), (results.not_run, "not run")] {
        if count > 0 {
            let _ = write!(text, ", {count} {name}");
        }
    }
    text + &format!(" in {:.1} s\n", results.seconds)
}

fn row(outcome: &TestOutcome) -> [String; HEAD.len()] {
    let seconds = (!outcome.runs.is_empty()).then(|| format!("{:.2}", outcome.seconds));
    let figure = |index: usize| outcome.figures.get(FIGURES[index]).map(|s| shown(s.median));
    let cells = [seconds, figure(0), figure(1), figure(2), figure(3)];
    let [seconds, ms, init, exits, mib] = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
    [outcome.result.name().into(), seconds, ms, init, exits, mib, outcome.name.into()]
}

/// The reasons for a failure, notes, p99 where there are several runs, and the logs.
fn details<'a>(outcome: &TestOutcome<'a>, shown_before: &mut ShownReasons<'a>) -> Vec<String> {
    let mut lines = outcome.reasons_after(shown_before);
    lines.extend(outcome.notes.iter().map(|note| format!("note: {note}")));
    let runs = outcome.runs.len();
    if runs > 1 && !outcome.figures.is_empty() {
        let p99 = outcome.figures.iter();
        let p99 = p99.map(|(figure, s)| format!("{figure} {}", shown(s.p99)));
        lines.push(format!("p99 of {runs} runs: {}", p99.collect::<Vec<_>>().join(", ")));
    }
    lines.extend(outcome.logs().map(|log| format!("log: {log}")));
    lines
}

/// The ends of the consoles of the first machines that failed.
fn consoles(outcomes: &[TestOutcome]) -> String {
    let mut text = String::new();
    let is_shown = |test: &&TestOutcome| test.result == Status::Failed && !test.never_started();
    let shown = outcomes.iter().filter(is_shown).filter(|outcome| !outcome.last_lines().is_empty());
    for outcome in shown.take(MAX_CONSOLES) {
        let _ = writeln!(text, "\nthe console of {} ends with:", outcome.name);
        let lines = outcome.last_lines();
        for line in lines.get(lines.len().saturating_sub(MAX_LINES)..).unwrap_or_default() {
            let _ = writeln!(text, "    {}", line.chars().take(MAX_LINE).collect::<String>());
        }
    }
    if text.is_empty() { text } else { text + "\n" }
}

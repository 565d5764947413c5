//! The results as people read them.

use std::fmt::Write;

use super::budget::shown;
use super::figures::FIGURES;
use super::outcome::{Outcome, ShownReasons, Status};
use super::results::Results;

/// Most machines whose console is shown, lines of each, and characters of a line.
const MAX_CONSOLES: usize = 20;
const MAX_LINES: usize = 15;
const MAX_LINE: usize = 200;

/// A line while other machines still run: `NAME: passed in 1.2 s`.
pub(super) fn line<'a>(outcome: &Outcome<'a>, shown: &mut ShownReasons<'a>) -> String {
    let (name, result, reasons) = (&outcome.test.name, outcome.result.name(), shown.next(outcome));
    match reasons.is_empty() {
        true => format!("{name}: {result} in {:.1} s", outcome.seconds),
        false => format!("{name}: {result}: {}", reasons.join("; ")),
    }
}

/// A line for each test with its reasons and notes below it, the consoles of those that failed, and the sum.
pub(super) fn table(results: &Results) -> String {
    let outcomes = &results.tests;
    let head = ["RESULT", "SECONDS", "INIT-MS", "INIT-EXITS", "EXITS", "MIB", "NAME"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(outcomes.iter().map(row));
    let columns = head.len() - 1;
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let (mut text, mut shown) = (String::new(), ShownReasons::default());
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        let _ = writeln!(text, "  {}", row.last().map_or("", String::as_str));
        if let Some(outcome) = index.checked_sub(1).and_then(|index| outcomes.get(index)) {
            text += &details(outcome, &shown.next(outcome));
        }
    }
    text += &consoles(outcomes);
    if !results.all_passed() {
        text.extend(results.advice.iter().map(|advice| format!("note: {advice}\n")));
    }
    text + &sum(results) + "\n"
}

fn row(outcome: &Outcome) -> Vec<String> {
    let seconds = match outcome.runs.is_empty() {
        true => "-".into(),
        false => format!("{:.2}", outcome.seconds),
    };
    let figures = FIGURES.iter().take(4).map(|figure| {
        let summary = outcome.figures.get(figure);
        summary.map_or_else(|| "-".into(), |summary| shown(summary.median))
    });
    let start = [outcome.result.name().to_owned(), seconds];
    start.into_iter().chain(figures).chain([outcome.test.name.clone()]).collect()
}

/// Why it failed, p99 where there are several runs, notes, and where the logs are.
fn details(outcome: &Outcome, reasons: &[String]) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "         {line}");
    };
    reasons.iter().for_each(|reason| line(reason));
    outcome.notes.iter().for_each(|note| line(&format!("note: {note}")));
    if outcome.runs.len() > 1 && !outcome.figures.is_empty() {
        let p99 = outcome.figures.iter();
        let p99 = p99.map(|(figure, s)| format!("{figure} {}", shown(s.p99)));
        line(&format!(
            "p99 of {} runs: {}",
            outcome.runs.len(),
            p99.collect::<Vec<_>>().join(", ")
        ));
    }
    outcome.logs().for_each(|log| line(&format!("log: {log}")));
    text
}

/// How the consoles of the first machines that failed end.
fn consoles(outcomes: &[Outcome]) -> String {
    let has_one = |outcome: &&Outcome| {
        outcome.result == Status::Failed
            && !outcome.never_started()
            && !outcome.last_lines().is_empty()
    };
    let mut text = String::new();
    for outcome in outcomes.iter().filter(has_one).take(MAX_CONSOLES) {
        let _ = writeln!(text, "\nthe console of {} ends with:", outcome.test.name);
        let lines = outcome.last_lines();
        for line in lines.get(lines.len().saturating_sub(MAX_LINES)..).unwrap_or_default() {
            let line: String = line.chars().take(MAX_LINE).collect();
            let _ = writeln!(text, "    {line}");
        }
    }
    let more = outcomes.iter().filter(has_one).count().saturating_sub(MAX_CONSOLES);
    match (text.is_empty(), more) {
        (true, _) => text,
        (false, 0) => text + "\n",
        (false, _) => text + &format!("\n{more} more consoles are in their logs\n\n"),
    }
}

fn sum(results: &Results) -> String {
    let mut text = format!("{} passed", results.passed);
    for (count, name) in [(results.failed, "failed"), (results.not_run, "not run")] {
        if count > 0 {
            let _ = write!(text, ", {count} {name}");
        }
    }
    format!("{text} in {:.1} s", results.seconds)
}

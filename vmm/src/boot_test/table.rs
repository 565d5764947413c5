//! The results as people read them.

use std::fmt::Write;

use super::budget::shown;
use super::figures::FIGURES;
use super::outcome::{Outcome, Status};

/// A line for each test, below it what is to be known, and at the end the sum.
pub(super) fn table(outcomes: &[Outcome], seconds: f64) -> String {
    let head = ["RESULT", "SECONDS", "INIT-MS", "INIT-EXITS", "EXITS", "MIB", "NAME"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(outcomes.iter().map(row));
    let columns = head.len() - 1;
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        let _ = writeln!(text, "  {}", row.last().map_or("", String::as_str));
        if let Some(outcome) = index.checked_sub(1).and_then(|index| outcomes.get(index)) {
            text += &details(outcome);
        }
    }
    text + &sum(outcomes, seconds) + "\n"
}

fn row(outcome: &Outcome) -> Vec<String> {
    let seconds = match outcome.runs.is_empty() {
        true => "-".into(),
        false => format!("{:.2}", outcome.seconds()),
    };
    let figures = FIGURES.iter().take(4).map(|(_, figure)| {
        let summary = outcome.figures.get(figure);
        summary.map_or_else(|| "-".into(), |summary| shown(summary.median))
    });
    let start = [outcome.status.name().to_owned(), seconds];
    start.into_iter().chain(figures).chain([outcome.test.name.clone()]).collect()
}

/// Why it failed, p99 where there are several runs, notes, and where the logs are.
fn details(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "         {line}");
    };
    outcome.reasons.iter().for_each(|reason| line(reason));
    outcome.notes.iter().for_each(|note| line(&format!("note: {note}")));
    if outcome.runs.len() > 1 && !outcome.figures.is_empty() {
        let p99 = outcome.figures.iter();
        let p99 = p99.map(|(figure, s)| format!("{} {}", figure.name(), shown(s.p99)));
        line(&format!(
            "p99 of {} runs: {}",
            outcome.runs.len(),
            p99.collect::<Vec<_>>().join(", ")
        ));
    }
    outcome.logs().for_each(|log| line(&format!("log: {log}")));
    text
}

fn sum(outcomes: &[Outcome], seconds: f64) -> String {
    let count = |status| outcomes.iter().filter(|outcome| outcome.status == status).count();
    let mut text = format!("{} passed", count(Status::Passed));
    for status in [Status::Failed, Status::NotRun] {
        if count(status) > 0 {
            let _ = write!(text, ", {} {}", count(status), status.name());
        }
    }
    format!("{text} in {seconds:.1} s")
}

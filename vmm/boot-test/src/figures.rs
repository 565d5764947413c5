//! The cost of a run: figures of tinyvmm's boot report, and their summary over several runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::input::read_text;

/// Largest report that is read, in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// The name of a figure.
pub type Figure = &'static str;

/// Milliseconds from tinyvmm's start to the guest's init.
pub const INIT_MS: Figure = "init-ms";
/// Instructions that the guest executed. Not every host counts them, so a budget cannot always be checked.
pub const INSTRUCTIONS: Figure = "instructions";
/// Every figure; the first four are columns of the table of results. docs/boot-test.md describes them.
pub const FIGURES: [Figure; 5] = [INIT_MS, "init-exits", "exits", "memory-mib", INSTRUCTIONS];

/// A machine's figures over its runs.
pub type Summaries = BTreeMap<Figure, Summary>;

/// The figures of one run; those that were not measured are missing.
pub type Figures = BTreeMap<Figure, f64>;

/// The summary of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub median: f64,
    /// Nearest rank: with less than 100 runs, the largest.
    pub p99: f64,
}

/// The contents of a run's boot report.
#[derive(Debug, Default)]
pub struct RunReport {
    /// How the machine ended, e.g. `power-off`.
    pub end: Option<String>,
    /// The exit code for that end, unless it is a command's.
    pub exit_code: Option<i64>,
    pub figures: Figures,
}

/// Reads the boot report `path`.
pub fn read(path: &Path) -> Result<RunReport> {
    parse(&read_text(path, MAX_REPORT)?)
}

fn parse(text: &str) -> Result<RunReport> {
    let report: Value = serde_json::from_str(text).context("boot report")?;
    let number = |path| report.pointer(path).and_then(Value::as_f64);
    let marks = report.get("marks").and_then(Value::as_array);
    let mark = |name| marks.into_iter().flatten().find(|mark| mark["name"] == name);
    // The guest's own mark comes before the kernel's message, which is a guess.
    let init = mark("init-mark").or_else(|| mark("init-started"));
    let of_init = |path| init.and_then(|mark| mark.pointer(path)?.as_f64());
    // A process has some: 0 stands for a machine that did not get so far.
    let memory = number("/memory_kib/peak").filter(|kib| *kib > 0.0);
    let values = [
        of_init("/ms"),
        of_init("/exits/total"),
        number("/exits/total"),
        memory.map(|kib| kib / 1024.0),
        number("/instructions"),
    ];
    let figures = FIGURES.into_iter().zip(values);
    Ok(RunReport {
        end: report.get("end").and_then(Value::as_str).map(Into::into),
        exit_code: report.get("exit_code").and_then(Value::as_i64),
        figures: figures.filter_map(|(figure, value)| Some((figure, value?))).collect(),
    })
}

/// Median and p99 of each figure that any of `runs` has.
pub fn summaries<'a>(runs: impl Iterator<Item = &'a Figures>) -> Summaries {
    let mut values: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
    for (figure, value) in runs.flatten() {
        values.entry(*figure).or_default().push(*value);
    }
    let summary = |(figure, values)| Some((figure, summary(values)?));
    values.into_iter().filter_map(summary).collect()
}

fn summary(mut values: Vec<f64>) -> Option<Summary> {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let upper = *values.get(count / 2)?;
    let lower = *values.get((count - 1) / 2)?;
    let p99 = *values.get((count * 99).div_ceil(100) - 1)?;
    Some(Summary { median: f64::midpoint(lower, upper), p99 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"schema":1,"version":"0.1.0","end":"power-off","exit_code":0,
        "marks":[{"name":"start","ms":0.0,"exits":{"total":0,"io":0}},
                 {"name":"init-started","ms":300.5,"exits":{"total":2000}},
                 {"name":"init-mark","ms":320.25,"exits":{"total":2100}}],
        "exits":{"total":2725,"io":561},
        "memory_kib":{"guest":70000,"vmm":1920,"peak":81920},
        "instructions":null}"#;

    #[test]
    fn figures_are_read_from_a_report() {
        let RunReport { end, exit_code, figures } = parse(REPORT).unwrap();
        assert_eq!(exit_code, Some(0));
        assert_eq!(end.as_deref(), Some("power-off"));
        let expected =
            [(INIT_MS, 320.25), ("init-exits", 2100.0), ("exits", 2725.0), ("memory-mib", 80.0)];
        assert_eq!(figures, expected.into());
    }

    #[test]
    fn what_a_report_lacks_is_no_figure() {
        let earlier = REPORT.replace("init-mark", "other");
        assert_eq!(parse(&earlier).unwrap().figures[INIT_MS], 300.5);
        assert_eq!(parse("{}").unwrap().figures, Figures::new());
        let text =
            r#"{"instructions":7,"marks":[{"name":"init-mark","ms":1}],"memory_kib":{"guest":1}}"#;
        let figures = [(INIT_MS, 1.0), (INSTRUCTIONS, 7.0)];
        assert_eq!(parse(text).unwrap().figures, figures.into());
        assert_eq!(parse(r#"{"marks":7,"exits":[]}"#).unwrap().figures, Figures::new());
        for text in ["", "[]x"] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn median_and_p99() {
        let of = |values: &[f64]| summary(values.to_vec()).unwrap();
        assert_eq!(of(&[5.0]), Summary { median: 5.0, p99: 5.0 });
        assert_eq!(of(&[9.0, 1.0, 2.0]), Summary { median: 2.0, p99: 9.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Summary { median: 2.5, p99: 4.0 });
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(of(&hundred), Summary { median: 50.5, p99: 99.0 });
        assert_eq!(summary(vec![]), None);
    }
}

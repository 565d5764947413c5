//! What a run cost: read from tinyvmm's boot report, and summed up over several runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Largest report that is read, in bytes.
const MAX_REPORT: u64 = 1 << 20;

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Figure {
    /// Milliseconds from tinyvmm's start to the guest's init.
    InitMs,
    /// Exits from guest to tinyvmm until then.
    InitExits,
    /// All of them.
    Exits,
    /// The most memory that guest and tinyvmm together had at any time, in MiB.
    MemoryMib,
    /// Instructions that the guest executed.
    Instructions,
}

/// Every figure, with its name in specs, baselines and results.
pub(super) const FIGURES: [(&str, Figure); 5] = [
    ("init-ms", Figure::InitMs),
    ("init-exits", Figure::InitExits),
    ("exits", Figure::Exits),
    ("memory-mib", Figure::MemoryMib),
    ("instructions", Figure::Instructions),
];

impl Figure {
    /// As in a spec.
    pub(super) fn name(self) -> &'static str {
        FIGURES.iter().find(|(_, figure)| *figure == self).map_or("", |(name, _)| name)
    }

    /// Whether it is there on some hosts only, so that a budget for it cannot always be checked.
    pub(super) fn is_optional(self) -> bool {
        self == Self::Instructions
    }
}

/// Figures of one run; what was not measured is not in it.
pub(super) type Figures = BTreeMap<Figure, f64>;

/// Over the runs of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    /// Nearest rank: with less than 100 runs, the largest.
    pub(super) p99: f64,
}

/// The file that `tinyvmm --boot-report` writes, as far as it is used here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    end: Option<String>,
    marks: Vec<Mark>,
    exits: Option<Exits>,
    memory_kib: Option<MemoryKib>,
    instructions: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Mark {
    name: String,
    ms: f64,
    exits: Option<Exits>,
}

#[derive(Debug, Deserialize)]
struct Exits {
    total: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct MemoryKib {
    peak: Option<u64>,
}

/// What is known of a run.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// How the machine ended, as the report has it, e.g. `power-off`.
    pub(super) end: Option<String>,
    pub(super) figures: Figures,
}

/// Reads the boot report `path`.
pub(super) fn read(path: &Path) -> Result<Measured> {
    let mut text = String::new();
    let file = File::open(path).context("no boot report")?;
    file.take(MAX_REPORT).read_to_string(&mut text).context("boot report")?;
    parse(&text)
}

fn parse(text: &str) -> Result<Measured> {
    let report: Report = serde_json::from_str(text).context("boot report")?;
    let mark = |name: &str| report.marks.iter().find(|mark| mark.name == name);
    // A guest that tells when it is up is believed more than the guess.
    let init = mark("init-mark").or_else(|| mark("init-started"));
    #[expect(clippy::cast_precision_loss, reason = "figures to compare, far below 2^53")]
    let count = |count: u64| count as f64;
    let total = |exits: &Exits| exits.total.map(count);
    // Nobody has none: it is 0 where the machine did not get so far.
    let memory = report.memory_kib.as_ref().and_then(|memory| memory.peak).filter(|kib| *kib > 0);
    let all = [
        (Figure::InitMs, init.map(|mark| mark.ms)),
        (Figure::InitExits, init.and_then(|mark| mark.exits.as_ref().and_then(total))),
        (Figure::Exits, report.exits.as_ref().and_then(total)),
        (Figure::MemoryMib, memory.map(|kib| count(kib) / 1024.0)),
        (Figure::Instructions, report.instructions.map(count)),
    ];
    let figures = all.into_iter().filter_map(|(figure, value)| Some((figure, value?))).collect();
    Ok(Measured { end: report.end, figures })
}

/// Median and p99 of each figure that any of `runs` has.
pub(super) fn summaries<'a>(
    runs: impl IntoIterator<Item = &'a Figures>,
) -> BTreeMap<Figure, Summary> {
    let mut values: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
    for (figure, value) in runs.into_iter().flatten() {
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
        let Measured { end, figures } = parse(REPORT).unwrap();
        assert_eq!(end.as_deref(), Some("power-off"));
        let expected = [
            (Figure::InitMs, 320.25),
            (Figure::InitExits, 2100.0),
            (Figure::Exits, 2725.0),
            (Figure::MemoryMib, 80.0),
        ];
        assert_eq!(figures, expected.into());
    }

    #[test]
    fn what_a_report_lacks_is_no_figure() {
        let earlier = REPORT.replace("init-mark", "other");
        assert_eq!(parse(&earlier).unwrap().figures[&Figure::InitMs], 300.5);
        assert_eq!(parse("{}").unwrap().figures, Figures::new());
        let text =
            r#"{"instructions":7,"marks":[{"name":"init-mark","ms":1}],"memory_kib":{"guest":1}}"#;
        let figures = [(Figure::InitMs, 1.0), (Figure::Instructions, 7.0)];
        assert_eq!(parse(text).unwrap().figures, figures.into());
        for text in ["", "[]x", r#"{"marks":7}"#, r#"{"exits":{"total":-1}}"#] {
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

    #[test]
    fn names_are_those_of_json() {
        for (name, figure) in FIGURES {
            assert_eq!(serde_json::to_value(figure).unwrap(), name);
            assert_eq!(figure.name(), name);
        }
    }
}

//! What a machine may cost: limits in the spec, and the figures of an earlier run (the baseline).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::figures::{FIGURES, Figure, INSTRUCTIONS, Summaries};
use super::input::{no_such_key, read_text};
use super::node::Node;

const SCHEMA: u32 = 1;
/// Largest baseline that is read, in bytes.
const MAX_BASELINE: u64 = 16 << 20;

/// An upper limit of a figure's median or p99.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub figure: Figure,
    p99: bool,
    max: f64,
}

impl Limit {
    /// Reads `budget`: a table of figures, each a number for the median, or median and p99.
    pub fn read_all(node: &Node) -> Result<Vec<Self>> {
        let (table, mut limits) = (node.table(&FIGURES)?, Vec::new());
        ensure!(!table.0.is_empty(), node.error("names no figure"));
        for figure in FIGURES {
            let Some(node) = table.get(figure) else { continue };
            if !node.is_table() {
                let max = node.number("a number, or { median = .., p99 = .. }")?;
                limits.push(Self { figure, p99: false, max });
                continue;
            }
            for (key, node) in node.table(&["median", "p99"])?.0 {
                limits.push(Self { figure, p99: key == "p99", max: node.number("a number")? });
            }
        }
        Ok(limits)
    }
}

/// The fractions by which figures may be above the baseline; figures without one are not compared.
pub type Tolerance = BTreeMap<Figure, f64>;

/// The tolerance of a spec without one: 10% for each figure.
pub fn default_tolerance() -> Tolerance {
    FIGURES.map(|figure| (figure, 0.1)).into()
}

/// Reads `"10%"`, or a table of percentages.
pub fn read_tolerance(node: &Node) -> Result<Tolerance> {
    if !node.is_table() {
        let all = node.percentage()?;
        return Ok(FIGURES.map(|figure| (figure, all)).into());
    }
    let table = node.table(&FIGURES)?;
    let each = FIGURES.into_iter().filter_map(|figure| Some((figure, table.get(figure)?)));
    each.map(|(figure, node)| Ok((figure, node.percentage()?))).collect()
}

/// The medians of an earlier run, by the machine's name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    schema: u32,
    machines: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Baseline {
    /// Reads the file `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            std::fs::metadata(path).context("cannot read it (--save-baseline makes it)")?;
            let baseline: Self = serde_json::from_str(&read_text(path, MAX_BASELINE)?)?;
            let (schema, anew) = (baseline.schema, "make it anew with --save-baseline");
            ensure!(schema == SCHEMA, "its schema is {schema}, not {SCHEMA}: {anew}");
            let mut figures = baseline.machines.values().flat_map(BTreeMap::keys);
            match figures.find(|figure| !FIGURES.contains(&figure.as_str())) {
                Some(figure) => bail!("{}", no_such_key(figure, FIGURES)),
                None => Ok(baseline),
            }
        };
        read().with_context(|| format!("baseline {}", path.display()))
    }

    /// Sets the medians of the machine `name`.
    pub fn set(&mut self, name: &str, summaries: &Summaries) {
        let medians =
            summaries.iter().map(|(figure, summary)| (figure.to_string(), summary.median));
        self.machines.insert(name.to_owned(), medians.collect());
    }

    /// Writes the file `path`, all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let mut new = path.as_os_str().to_owned();
            new.push(".new");
            let baseline = Self { schema: SCHEMA, ..self.clone() };
            std::fs::write(&new, serde_json::to_string_pretty(&baseline)? + "\n")?;
            Ok(std::fs::rename(&new, path)?)
        };
        write().with_context(|| format!("baseline {}", path.display()))
    }
}

/// The result of comparing a machine's figures.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// The reasons for a failure.
    pub failures: Vec<String>,
    /// What could not be checked.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Compares `found` with the limits.
    pub fn check_limits(&mut self, limits: &[Limit], found: &Summaries) {
        for Limit { figure, p99, max } in limits {
            let Some(summary) = found.get(figure) else {
                let is_optional = *figure == INSTRUCTIONS;
                let list = if is_optional { &mut self.notes } else { &mut self.failures };
                list.push(format!("{figure} was not measured, so its budget cannot be checked"));
                continue;
            };
            let (which, value) = if *p99 { (" p99", summary.p99) } else { ("", summary.median) };
            if value > *max {
                let (value, max) = (shown(value), shown(*max));
                self.failures.push(format!("{figure}{which} is {value}, the budget is {max}"));
            }
        }
    }

    /// Compares the medians of `found` with those of the machine `name` in `baseline`.
    pub fn check_baseline(
        &mut self,
        baseline: &Baseline,
        name: &str,
        tolerance: &Tolerance,
        found: &Summaries,
    ) {
        let Some(before) = baseline.machines.get(name) else {
            return self.notes.push("not in the baseline: --save-baseline adds it".into());
        };
        for (figure, tolerance) in tolerance {
            let Some(before) = before.get(*figure) else { continue };
            let Some(now) = found.get(figure).map(|summary| summary.median) else {
                self.notes.push(format!("{figure} is in the baseline and was not measured"));
                continue;
            };
            if now > before * (1.0 + tolerance) {
                let (now, before, percent) = (shown(now), shown(*before), tolerance * 100.0);
                let more = format!("{percent:.0}% more are tolerated");
                let failure = format!("{figure} is {now}, the baseline is {before} and {more}");
                self.failures.push(failure);
            }
        }
    }
}

/// A figure without meaningless digits.
pub fn shown(value: f64) -> String {
    let whole = format!("{value:.0}");
    if value.fract() == 0.0 || value >= 1000.0 { whole } else { format!("{value:.1}") }
}

//! What a machine may cost: limits in the spec, and the figures of an earlier run (the baseline).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figures::{FIGURES, Figure, INSTRUCTIONS, Summary};
use super::input::{no_such_key, read_text};
use super::node::Node;

/// How much worse than the baseline a figure may be, unless the spec says.
const DEFAULT_TOLERANCE: f64 = 0.1;
const SCHEMA: u32 = 1;
/// Largest baseline that is read, in bytes.
const MAX_BASELINE: u64 = 16 << 20;

/// The most that a figure may be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limit {
    pub(super) figure: Figure,
    median: Option<f64>,
    p99: Option<f64>,
}

impl Limit {
    /// Reads `budget`: a table of figures, each a number for the median, or median and p99.
    pub(super) fn read_all(node: &Node) -> Result<Vec<Self>> {
        let limits: Vec<_> = node.entries()?.into_iter().map(Self::read).collect::<Result<_>>()?;
        if limits.is_empty() {
            return Err(node.error("names no figure"));
        }
        Ok(limits)
    }

    fn read((name, node): (&str, Node)) -> Result<Self> {
        let figure = figure(name, &node)?;
        if !node.is_table() {
            let wanted = "a number, or { median = .., p99 = .. }";
            let median = node.number()?.ok_or_else(|| node.error(format_args!("say {wanted}")))?;
            return Ok(Self { figure, median: Some(median), p99: None });
        }
        let mut limit = Self { figure, median: None, p99: None };
        for (key, node) in node.entries()? {
            let value = node.number()?.ok_or_else(|| node.error("say a number"))?;
            match key {
                "median" => limit.median = Some(value),
                "p99" => limit.p99 = Some(value),
                _ => return Err(node.error(no_such_key(key, ["median", "p99"]))),
            }
        }
        Ok(limit)
    }
}

fn figure(name: &str, node: &Node) -> Result<Figure> {
    let found = FIGURES.into_iter().find(|figure| *figure == name);
    found.ok_or_else(|| node.error(no_such_key(name, FIGURES)))
}

/// How much worse than the baseline each figure may be, as a fraction.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tolerance {
    /// The same for all.
    All(f64),
    /// For these; the others are not compared.
    Each(BTreeMap<Figure, f64>),
}

impl Default for Tolerance {
    fn default() -> Self {
        Self::All(DEFAULT_TOLERANCE)
    }
}

impl Tolerance {
    /// Reads `"10%"`, or a table of those.
    pub(super) fn read(node: &Node) -> Result<Self> {
        if !node.is_table() {
            return Ok(Self::All(node.percentage()?));
        }
        let each = node.entries()?.into_iter();
        let each = each.map(|(name, node)| Ok((figure(name, &node)?, node.percentage()?)));
        Ok(Self::Each(each.collect::<Result<_>>()?))
    }

    /// That of `figure`; `None` if it is not compared.
    pub(super) fn of(&self, figure: &str) -> Option<f64> {
        match self {
            Self::All(tolerance) => Some(*tolerance),
            Self::Each(each) => each.get(figure).copied(),
        }
    }
}

/// The medians of an earlier run, of each machine by its name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baseline {
    schema: u32,
    machines: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Baseline {
    /// A baseline without machines.
    pub(super) fn new() -> Self {
        Self { schema: SCHEMA, machines: BTreeMap::new() }
    }

    /// Reads the file `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let named = || format!("baseline {}", path.display());
        std::fs::metadata(path)
            .context("cannot read it (--save-baseline makes it)")
            .with_context(named)?;
        let text = read_text(path, MAX_BASELINE).with_context(named)?;
        let baseline: Self = serde_json::from_str(&text).with_context(named)?;
        for figure in baseline.machines.values().flat_map(BTreeMap::keys) {
            ensure!(FIGURES.contains(&&**figure), "{}: {}", named(), no_such_key(figure, FIGURES));
        }
        ensure!(
            baseline.schema == SCHEMA,
            "{}: its schema is {}, not {SCHEMA}: make it anew with --save-baseline",
            named(),
            baseline.schema
        );
        Ok(baseline)
    }

    /// Sets the medians of the machine `name`.
    pub(super) fn set(&mut self, name: &str, summaries: &BTreeMap<Figure, Summary>) {
        let medians =
            summaries.iter().map(|(figure, summary)| (figure.to_string(), summary.median));
        self.machines.insert(name.to_owned(), medians.collect());
    }

    /// Writes the file `path`, all of it or nothing.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let named = || format!("baseline {}", path.display());
        let text = serde_json::to_string_pretty(self).with_context(named)? + "\n";
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        std::fs::write(&new, text).with_context(named)?;
        std::fs::rename(&new, path).with_context(named)
    }
}

/// What came of comparing a machine's figures.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Why it fails.
    pub(super) failures: Vec<String>,
    /// What could not be checked.
    pub(super) notes: Vec<String>,
}

/// Compares `found` with the limits.
pub(super) fn check_limits(limits: &[Limit], found: &BTreeMap<Figure, Summary>) -> Verdict {
    let mut verdict = Verdict::default();
    for limit in limits {
        let name = limit.figure;
        let Some(summary) = found.get(name) else {
            let text = format!("{name} was not measured, so its budget cannot be checked");
            match name {
                INSTRUCTIONS => verdict.notes.push(text),
                _ => verdict.failures.push(text),
            }
            continue;
        };
        let pairs = [("", summary.median, limit.median), (" p99", summary.p99, limit.p99)];
        for (which, value, most) in pairs {
            if let Some(most) = most.filter(|most| value > *most) {
                let (value, most) = (shown(value), shown(most));
                verdict.failures.push(format!("{name}{which} is {value}, the budget is {most}"));
            }
        }
    }
    verdict
}

/// Compares the medians of `found` with those that `baseline` has of machine `name`.
pub(super) fn check_baseline(
    baseline: &Baseline,
    name: &str,
    tolerance: &Tolerance,
    found: &BTreeMap<Figure, Summary>,
) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(before) = baseline.machines.get(name) else {
        verdict.notes.push("not in the baseline: --save-baseline adds it".into());
        return verdict;
    };
    for (figure, before) in before {
        let Some(tolerance) = tolerance.of(figure) else { continue };
        let Some(now) = found.get(&**figure) else {
            verdict.notes.push(format!("{figure} is in the baseline and was not measured"));
            continue;
        };
        let most = before * (1.0 + tolerance);
        if now.median > most {
            let (now, before, percent) = (shown(now.median), shown(*before), tolerance * 100.0);
            verdict.failures.push(format!(
                "{figure} is {now}, the baseline is {before} and {percent:.0}% more are tolerated"
            ));
        }
    }
    verdict
}

/// A figure without digits that mean nothing.
pub(super) fn shown(value: f64) -> String {
    let whole = format!("{value:.0}");
    if value.fract() == 0.0 || value >= 1000.0 { whole } else { format!("{value:.1}") }
}

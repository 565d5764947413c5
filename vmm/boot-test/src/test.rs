//! A machine of the spec, and what it must do.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use regex_lite::Regex;

use super::budget::{self, Limit, Tolerance};
use super::figures::INIT_MS;
use super::machine::MachineSpec;
use super::node::{Node, Table};
use super::tinyvmm::MachineKeys;

/// MachineKeys of a machine in a spec that configure the test and are no flags of tinyvmm; `timeout` is both.
#[rustfmt::skip]
pub const KEYS: [&str; 11] = [
    "alone", "budget", "end", "exit-status", "expect", "fail-on", "fail-on-warning", "repeat", "run", "timeout",
    "tolerance",
];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REPEAT: u32 = 1000;
/// Messages of Linux about failures, e.g. `BUG: kernel NULL pointer dereference` (not DEBUG:).
const FAILURES: [&str; 3] = ["Kernel panic", r"\bBUG:", r"\bOops\b"];
/// At the start of a message, after the time and the caller (`printk.time`, CONFIG_PRINTK_CALLER):
/// the mitigations' `Speculative Return Stack Overflow: WARNING: See ...` warns of no failure.
const WARNING: &str = r"^(\[ *[0-9.]+\])?(\[ *[TC][0-9]+\])? ?WARNING: ";

/// The ends that `end` can have, by their names in the boot report.
const ENDS: [&str; 5] = [POWER_OFF, "reboot", "triple-fault", PANIC, TIMEOUT];
const POWER_OFF: &str = "power-off";
const PANIC: &str = "panic";
pub const TIMEOUT: &str = "timeout";

/// A machine, and what it must do to pass.
#[derive(Clone, Debug)]
pub struct Test {
    /// Unique in the spec.
    pub name: String,
    pub machine: MachineSpec,
    /// The command in the guest; none if empty.
    pub command: Vec<String>,
    /// The limit of a whole run.
    pub timeout: Duration,
    /// The patterns that the console has to show, in this order.
    pub expect: Vec<Expected>,
    /// The patterns that the console must not show.
    pub fail_on: Vec<Regex>,
    pub end: Wanted,
    pub limits: Vec<Limit>,
    pub tolerance: Tolerance,
    pub repeat: u32,
    /// No other machine may run meanwhile, as times are measured.
    pub alone: bool,
}

/// A pattern that the console has to show.
#[derive(Clone, Debug)]
pub struct Expected {
    pub pattern: Regex,
    /// The limit since the pattern before it, or the start.
    pub timeout: Option<Duration>,
}

/// The end that a run has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The runner stops the machine once it has shown all that is expected.
    Shown,
    /// The machine ends like this, by itself.
    End(&'static str),
    /// The command, or the guest by itself, ends with this status.
    Status(u8),
}

impl Test {
    /// Reads `keys` of the machine whose table is `node`. Those that are tinyvmm's are among `known`.
    ///
    /// `compared`: the figures will be compared with those of an earlier run.
    pub fn read(
        name: String,
        node: &Node,
        keys: &Table,
        known: &MachineKeys,
        compared: bool,
    ) -> Result<Self> {
        let command = keys.read("run", read_command)?.unwrap_or_default();
        let expect = keys.read("expect", |node| node.one_or_more(read_expected))?;
        if let (Some([]), Some(node)) = (expect.as_deref(), keys.get("expect")) {
            bail!(node.error("is an empty list: name a pattern, or leave it out"));
        }
        let expect = expect.unwrap_or_default();
        let end = read_end(keys, !command.is_empty(), !expect.is_empty())?;
        let limits = keys.read("budget", Limit::read_all)?.unwrap_or_default();
        let tolerance = keys.read("tolerance", budget::read_tolerance)?;
        let tolerance = tolerance.unwrap_or_else(budget::default_tolerance);
        let limited = limits.iter().any(|limit| limit.figure == INIT_MS);
        let timed = limited || compared && tolerance.contains_key(INIT_MS);
        Ok(Self {
            name,
            machine: MachineSpec::read(node, keys, known)?,
            fail_on: read_fail_on(keys, &end)?,
            timeout: keys.read("timeout", Node::duration)?.unwrap_or(DEFAULT_TIMEOUT),
            repeat: keys.read("repeat", |node| node.integer(1..=MAX_REPEAT))?.unwrap_or(1),
            alone: keys.read("alone", Node::bool)?.unwrap_or(timed),
            command,
            expect,
            end,
            limits,
            tolerance,
        })
    }
}

/// A string is for the guest's shell, a list is a program and its arguments.
fn read_command(node: &Node) -> Result<Vec<String>> {
    if node.is_string() {
        return Ok(["sh", "-c", node.string()?].map(Into::into).to_vec());
    }
    let words = node.strings()?;
    ensure!(!words.is_empty(), node.error("is an empty list: name a program"));
    Ok(words)
}

fn read_expected(node: &Node) -> Result<Expected> {
    if !node.is_table() {
        return Ok(Expected { pattern: node.regex()?, timeout: None });
    }
    let table = node.table(&["pattern", "timeout"])?;
    let pattern = table.read("pattern", Node::regex)?;
    let pattern = pattern.ok_or_else(|| node.error("has no pattern"))?;
    Ok(Expected { pattern, timeout: table.read("timeout", Node::duration)? })
}

fn read_end(keys: &Table, command: bool, expect: bool) -> Result<Wanted> {
    let status = keys.get("exit-status");
    match (keys.get("end"), status) {
        (Some(node), _) if command => Err(node.error("a machine with 'run' ends with its command")),
        (Some(_), Some(node)) => Err(node.error("the machine has an 'end': leave one out")),
        (Some(node), None) => {
            let name = node.string()?;
            let what = || format!("'{name}' is not one of {}", ENDS.join(", "));
            let end = ENDS.into_iter().find(|end| *end == name);
            Ok(Wanted::End(end.ok_or_else(|| node.error(what()))?))
        }
        (None, Some(node)) => Ok(Wanted::Status(u8::try_from(node.integer(0..=255)?)?)),
        (None, None) if command => Ok(Wanted::Status(0)),
        (None, None) if expect => Ok(Wanted::Shown),
        (None, None) => Ok(Wanted::End(POWER_OFF)),
    }
}

/// A machine that has to panic prints that, and may print anything else.
fn read_fail_on(keys: &Table, end: &Wanted) -> Result<Vec<Regex>> {
    let own = keys.read("fail-on", |node| node.one_or_more(Node::regex))?;
    let is_own = own.is_some() || *end == Wanted::End(PANIC);
    let mut built_in = if is_own { vec![] } else { FAILURES.to_vec() };
    if keys.read("fail-on-warning", Node::bool)? == Some(true) {
        built_in.push(WARNING);
    }
    let built_in = built_in.into_iter().map(|text| Ok(Regex::new(text)?));
    own.into_iter().flatten().map(Ok).chain(built_in).collect()
}

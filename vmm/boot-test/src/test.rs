//! One machine of the spec and what it must do.

use std::time::Duration;

use anyhow::Result;
use regex_lite::Regex;

use super::budget::{Limit, Tolerance};
use super::figures::INIT_MS;
use super::input::no_such_key;
use super::machine::MachineSpec;
use super::node::Node;
use super::spec::Entries;
use super::tinyvmm::Keys;

/// Keys of a machine in a spec that are not the machine's but the test's.
pub(super) const KEYS: [&str; 11] = [
    "alone",
    "budget",
    "end",
    "exit-status",
    "expect",
    "fail-on",
    "fail-on-warning",
    "repeat",
    "run",
    "timeout",
    "tolerance",
];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REPEAT: u32 = 1000;
/// What Linux prints when something went wrong, e.g. `BUG: kernel NULL pointer dereference` (not DEBUG:).
const FAILURES: [&str; 3] = ["Kernel panic", r"\bBUG:", r"\bOops\b"];
/// At the start of a message, after the time and the caller (`printk.time`, CONFIG_PRINTK_CALLER):
/// the mitigations' `Speculative Return Stack Overflow: WARNING: See ...` warns of no failure.
const WARNING: &str = r"^(\[ *[0-9.]+\])?(\[ *[TC][0-9]+\])? ?WARNING: ";

/// The ends that a machine can be wanted to have, by their names in the boot report.
const ENDS: [&str; 5] = [POWER_OFF, "reboot", "triple-fault", PANIC, TIMEOUT];
const POWER_OFF: &str = "power-off";
const PANIC: &str = "panic";
pub(super) const TIMEOUT: &str = "timeout";

/// A machine, and what it must do to pass.
#[derive(Clone, Debug)]
pub(super) struct Test {
    /// Unique in the spec.
    pub(super) name: String,
    pub(super) machine: MachineSpec,
    /// What is to run in the guest; nothing if empty.
    pub(super) command: Vec<String>,
    /// Of a whole run.
    pub(super) timeout: Duration,
    /// What the console has to show, in this order.
    pub(super) expect: Vec<Expected>,
    /// What the console must not show.
    pub(super) fail_on: Vec<Regex>,
    pub(super) end: Wanted,
    pub(super) limits: Vec<Limit>,
    pub(super) tolerance: Tolerance,
    pub(super) repeat: u32,
    /// No other machine may run meanwhile: the time it takes is measured.
    pub(super) alone: bool,
}

/// Something that the console has to show.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) pattern: Regex,
    /// Since the pattern before it, or the start.
    pub(super) timeout: Option<Duration>,
}

/// How a run has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The runner stops the machine once it has shown all that is expected.
    Shown,
    /// The machine ends like this, by itself.
    End(&'static str),
    /// The command, or the guest by itself, ends with this status.
    Status(u8),
}

impl Test {
    /// Reads `keys` of the machine that is described at `node`. Those that are tinyvmm's are among `known`.
    ///
    /// `baseline`: figures will be compared with those of an earlier run.
    pub(super) fn read(
        name: String,
        node: &Node,
        keys: &Entries,
        (known, baseline): (&Keys, bool),
    ) -> Result<Self> {
        let mut machine = MachineSpec::new(node);
        for (key, value) in keys.of_machine() {
            machine.set(key, value, known)?;
        }
        let command = keys.get("run").map(read_command).transpose()?.unwrap_or_default();
        let expect = keys.get("expect").map(read_expect).transpose()?.unwrap_or_default();
        let end = read_end(keys, !command.is_empty(), !expect.is_empty())?;
        let fail_on = read_fail_on(keys, &end)?;
        let timeout = keys.get("timeout").map(Node::duration).transpose()?;
        let limits = keys.get("budget").map(Limit::read_all).transpose()?.unwrap_or_default();
        let repeat = keys.get("repeat").map(|node| node.integer(1..=MAX_REPEAT)).transpose()?;
        let tolerance = keys.get("tolerance").map(Tolerance::read).transpose()?;
        let tolerance = tolerance.unwrap_or_default();
        let alone = keys.get("alone").map(Node::bool).transpose()?;
        let limited = limits.iter().any(|limit| limit.figure == INIT_MS);
        let timed = limited || baseline && tolerance.of(INIT_MS).is_some();
        Ok(Self {
            name,
            machine,
            command,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            expect,
            fail_on,
            end,
            limits,
            tolerance,
            repeat: repeat.unwrap_or(1),
            alone: alone.unwrap_or(timed),
        })
    }
}

/// A string is for the guest's shell, a list is a program and its arguments.
fn read_command(node: &Node) -> Result<Vec<String>> {
    if node.is_string() {
        return Ok(["sh", "-c", node.string()?].map(Into::into).to_vec());
    }
    let words = node.strings()?;
    if words.is_empty() {
        return Err(node.error("is an empty list: name a program"));
    }
    Ok(words)
}

fn read_expect(node: &Node) -> Result<Vec<Expected>> {
    let items = if node.is_string() { vec![node.clone()] } else { node.items("a list")? };
    if items.is_empty() {
        return Err(node.error("is an empty list: name a pattern, or leave it out"));
    }
    items.iter().map(read_expected).collect()
}

fn read_expected(node: &Node) -> Result<Expected> {
    if !node.is_table() {
        return Ok(Expected { pattern: node.regex()?, timeout: None });
    }
    let (mut pattern, mut timeout) = (None, None);
    for (key, value) in node.entries()? {
        match key {
            "pattern" => pattern = Some(value.regex()?),
            "timeout" => timeout = Some(value.duration()?),
            _ => return Err(value.error(no_such_key(key, ["pattern", "timeout"]))),
        }
    }
    let pattern = pattern.ok_or_else(|| node.error("has no pattern"))?;
    Ok(Expected { pattern, timeout })
}

fn read_end(keys: &Entries, command: bool, expect: bool) -> Result<Wanted> {
    let status = keys.get("exit-status");
    if let Some(node) = keys.get("end") {
        return match (command, status) {
            (true, _) => Err(node.error("a machine with 'run' ends with its command")),
            (_, Some(node)) => Err(node.error("the machine has an 'end': leave one out")),
            _ => read_end_name(node).map(Wanted::End),
        };
    }
    let Some(node) = status else {
        return Ok(match (command, expect) {
            (true, _) => Wanted::Status(0),
            (false, true) => Wanted::Shown,
            (false, false) => Wanted::End(POWER_OFF),
        });
    };
    Ok(Wanted::Status(u8::try_from(node.integer(0..=255)?)?))
}

fn read_end_name(node: &Node) -> Result<&'static str> {
    let name = node.string()?;
    let found = ENDS.into_iter().find(|end| *end == name);
    found.ok_or_else(|| node.error(format_args!("'{name}' is not one of {}", ENDS.join(", "))))
}

/// A machine that is to panic says so, and may say anything else.
fn read_fail_on(keys: &Entries, end: &Wanted) -> Result<Vec<Regex>> {
    let built_in = |text: &str| Regex::new(text).map_err(anyhow::Error::from);
    let mut patterns: Vec<Regex> = match keys.get("fail-on") {
        Some(node) if node.is_string() => vec![node.regex()?],
        Some(node) => {
            let items = node.items("a list of patterns")?;
            items.iter().map(Node::regex).collect::<Result<_>>()?
        }
        None if *end == Wanted::End(PANIC) => Vec::new(),
        None => FAILURES.iter().map(|text| built_in(text)).collect::<Result<_>>()?,
    };
    if keys.get("fail-on-warning").map(Node::bool).transpose()? == Some(true) {
        patterns.push(built_in(WARNING)?);
    }
    Ok(patterns)
}

//! The keys of a spec that are a machine's: each stands for a flag of tinyvmm, which checks them.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, anyhow};
use toml::Value;

use super::input::no_such_key;
use super::node::Node;
use super::tinyvmm::{Keys, Needs, Tinyvmm};

/// Keys that the runner sets itself, and why nobody else can.
const RUNNERS_OWN: [(&str, &str); 2] = [
    ("console", "the runner reads the console: it cannot go elsewhere"),
    ("boot-report", "the runner has it written for itself"),
];

/// A machine as flags for tinyvmm.
#[derive(Clone, Debug)]
pub(super) struct MachineSpec {
    pub(super) flags: Vec<OsString>,
    /// Known once tinyvmm has checked the machine.
    pub(super) needs: Needs,
    /// `line N: KEY` of the machine.
    place: String,
    /// Each key with its `line N: KEY`.
    keys: Vec<(String, String)>,
}

impl MachineSpec {
    /// A machine without keys, described at `node`.
    pub(super) fn new(node: &Node) -> Self {
        Self { flags: vec![], needs: Needs::default(), place: node.place(), keys: vec![] }
    }

    /// Adds the flags that the key `name` with the value `node` stands for.
    pub(super) fn set(&mut self, name: &str, node: &Node, known: &Keys) -> Result<()> {
        if let Some((_, why)) = RUNNERS_OWN.iter().find(|(key, _)| *key == name) {
            return Err(node.error(why));
        }
        if !known.has(name) {
            return Err(node.error(no_such_key(name, known.names())));
        }
        let mut push = |text: &str| self.flags.push(format!("--{name}={text}").into());
        match node.plain()? {
            Value::String(text) => push(&text),
            Value::Integer(number) => push(&number.to_string()),
            Value::Boolean(on) => push(&on.to_string()),
            Value::Array(_) if known.is_list(name) => {
                node.strings()?.iter().for_each(|item| push(item));
            }
            _ => return Err(node.wrong_type("a string")),
        }
        self.keys.push((name.to_owned(), node.place()));
        Ok(())
    }

    /// Whether the machine has the key `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|(key, _)| key == name)
    }

    /// Has tinyvmm check the machine, with `words` as its command; names of files are relative to `folder`.
    pub(super) fn check(
        &mut self,
        tinyvmm: &Tinyvmm,
        words: &[String],
        folder: &Path,
    ) -> Result<()> {
        let needs = tinyvmm.needs(&self.flags, words, folder);
        self.needs = needs.map_err(|error| anyhow!("{}: {error:#}", self.place_of(&error)))?;
        for disk in &mut self.needs.disks {
            let path = folder.join(&disk.path);
            disk.path = path.canonicalize().unwrap_or(path);
        }
        Ok(())
    }

    /// Where the first flag that `error` names was set, else where the machine is described.
    fn place_of(&self, error: &anyhow::Error) -> &str {
        let text = error.to_string();
        let is_part = |c: char| c == '-' || c.is_ascii_alphanumeric();
        let words = text.split(|c: char| !is_part(c)).filter_map(|word| word.strip_prefix("--"));
        let place = |flag: &str| self.keys.iter().rev().find(|(key, _)| key == flag);
        words.filter_map(place).next().map_or(&self.place, |(_, place)| place)
    }
}

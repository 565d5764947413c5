//! The keys of a spec that configure a machine: each stands for a flag of tinyvmm, which checks the value.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use toml::Value;

use super::node::{Node, Table};
use super::test::KEYS;
use super::tinyvmm::{MachineKeys, Needs, Tinyvmm};

/// MachineKeys that the runner sets itself, and why a spec cannot.
const RUNNERS_OWN: [(&str, &str); 2] = [
    ("console", "the runner reads the console: it cannot go elsewhere"),
    ("boot-report", "the runner has it written for itself"),
];

/// A machine as flags for tinyvmm.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    pub flags: Vec<OsString>,
    /// Set once tinyvmm has checked the machine.
    pub needs: Needs,
    /// `line N: KEY` of the machine's table.
    place: String,
    /// Each key with its `line N: KEY`.
    keys: Vec<(String, String)>,
}

impl MachineSpec {
    /// Reads those of `keys` that are among `known` and not the test's. `node` is the machine's table.
    pub fn read(node: &Node, keys: &Table, known: &MachineKeys) -> Result<Self> {
        let (mut flags, mut places) = (Vec::new(), Vec::new());
        let is_flag = |key: &&str| known.contains_key(*key) && !KEYS.contains(key);
        for (name, node) in keys.0.iter().filter(|(key, _)| is_flag(key)) {
            if let Some((_, why)) = RUNNERS_OWN.iter().find(|(key, _)| key == name) {
                bail!(node.error(why));
            }
            let mut push = |text: &str| flags.push(format!("--{name}={text}").into());
            match node.plain()? {
                Value::String(text) => push(&text),
                Value::Integer(number) => push(&number.to_string()),
                Value::Boolean(on) => push(&on.to_string()),
                Value::Array(_) if known.get(*name).is_some_and(serde_json::Value::is_array) => {
                    node.strings()?.iter().for_each(|item| push(item));
                }
                _ => bail!(node.wrong_type("a string")),
            }
            places.push(((*name).to_owned(), node.place()));
        }
        Ok(Self { flags, needs: Needs::default(), place: node.place(), keys: places })
    }

    /// Has tinyvmm check the machine, with `words` as its command and paths relative to `folder`.
    pub fn check(&mut self, tinyvmm: &Tinyvmm, words: &[String], folder: &Path) -> Result<()> {
        let needs = tinyvmm.needs(&self.flags, words, folder);
        self.needs = needs.map_err(|error| anyhow!("{}: {error:#}", self.place_of(&error)))?;
        for disk in &mut self.needs.disks {
            let path = folder.join(&disk.path);
            disk.path = path.canonicalize().unwrap_or(path);
        }
        Ok(())
    }

    /// The place of the first flag that `error` names, else of the machine.
    fn place_of(&self, error: &anyhow::Error) -> &str {
        let text = error.to_string();
        let is_part = |c: char| c == '-' || c.is_ascii_alphanumeric();
        let words = text.split(|c: char| !is_part(c)).filter_map(|word| word.strip_prefix("--"));
        let place = |flag: &str| self.keys.iter().rev().find(|(key, _)| key == flag);
        words.filter_map(place).next().map_or(&self.place, |(_, place)| place)
    }
}

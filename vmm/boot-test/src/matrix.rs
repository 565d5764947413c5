//! Every combination of a matrix's values.

use anyhow::{Result, ensure};
use toml::Value;

use super::node::{Node, Table};

/// Most machines of a spec.
pub const MAX_MACHINES: usize = 1000;

/// MachineKeys with their values.
#[derive(Clone, Default)]
pub struct Matrix<'a>(Vec<(&'a str, Vec<Node<'a>>)>);

impl<'a> Matrix<'a> {
    /// Reads the table `node`, whose keys have to be among `known`.
    pub fn read(node: &Node<'a>, known: &[&str]) -> Result<Self> {
        let mut keys = Vec::new();
        for (key, values) in node.table(known)?.0 {
            let items = values.items("a list of values")?;
            ensure!(!items.is_empty(), values.error("lists no value"));
            keys.push((key, items));
        }
        Ok(Self(keys))
    }

    /// This matrix with `other`'s values where both have the key, and without the keys of `pinned`.
    pub fn narrowed(&self, other: Self, pinned: &Table) -> Self {
        let mut keys = self.0.clone();
        keys.retain(|(key, _)| !other.has(key) && pinned.get(key).is_none());
        keys.extend(other.0);
        Self(keys)
    }

    /// Whether the matrix has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| *name == key)
    }

    /// The number of combinations.
    pub fn len(&self) -> usize {
        self.0.iter().fold(1, |len: usize, (_, values)| len.saturating_mul(values.len()))
    }

    /// All combinations; the last key's values change fastest.
    pub fn combinations(&self) -> Vec<Table<'a>> {
        let mut all = vec![Table::default()];
        for (key, values) in &self.0 {
            let with = |chosen: &Table<'a>, value: &Node<'a>| {
                Table([chosen.0.as_slice(), &[(*key, value.clone())]].concat())
            };
            all = all.iter().flat_map(|old| values.iter().map(move |v| with(old, v))).collect();
        }
        all
    }
}

/// `NAME[cpus=2,mem=64M]`.
pub fn name(base: &str, chosen: &Table) -> Result<String> {
    let mut parts = Vec::new();
    for (key, value) in &chosen.0 {
        let shown = match value.plain()? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        parts.push(format!("{key}={}", shown.replace(char::is_control, " ")));
    }
    Ok(if parts.is_empty() { base.into() } else { format!("{base}[{}]", parts.join(",")) })
}

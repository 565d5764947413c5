//! Every combination of the values that a matrix lists.

use anyhow::Result;

use super::input::no_such_key;
use super::node::Node;
use super::tinyvmm::Keys;

/// Most machines that a spec can ask for.
pub(super) const MAX_MACHINES: usize = 1000;

/// A key and one of its values in the matrix.
pub(super) type Choice<'a> = (&'a str, Node<'a>);

/// Keys, each with the values it is to have.
#[derive(Clone, Default)]
pub(super) struct Matrix<'a>(Vec<(&'a str, Vec<Node<'a>>)>);

impl<'a> Matrix<'a> {
    /// Reads the table `node`, whose keys have to be among `known`.
    pub(super) fn read(node: &Node<'a>, known: &Keys) -> Result<Self> {
        let mut keys = Vec::new();
        for (key, values) in node.entries()? {
            if !known.has(key) {
                return Err(values.error(no_such_key(key, known.names())));
            }
            let items = values.items("a list of values")?;
            if items.is_empty() {
                return Err(values.error("lists no value"));
            }
            keys.push((key, items));
        }
        Ok(Self(keys))
    }

    /// This one, with what `other` says of the same keys, and without those that `pinned` has.
    pub(super) fn narrowed(&self, other: Self, pinned: impl Fn(&str) -> bool) -> Self {
        let theirs = |key: &str| other.0.iter().any(|(name, _)| *name == key);
        let mut keys = self.0.clone();
        keys.retain(|(key, _)| !theirs(key) && !pinned(key));
        keys.extend(other.0);
        Self(keys)
    }

    /// Whether it has values for `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| *name == key)
    }

    /// How many combinations there are.
    pub(super) fn len(&self) -> usize {
        self.0.iter().fold(1, |len: usize, (_, values)| len.saturating_mul(values.len()))
    }

    /// Each combination; the last key's values change fastest.
    pub(super) fn combinations(&self) -> Vec<Vec<Choice<'a>>> {
        let mut all = vec![Vec::new()];
        for (key, values) in &self.0 {
            let with = |choices: &Vec<Choice<'a>>, value: &Node<'a>| {
                let mut choices = choices.clone();
                choices.push((key, value.clone()));
                choices
            };
            all = all.iter().flat_map(|old| values.iter().map(move |v| with(old, v))).collect();
        }
        all
    }
}

/// `NAME[cpus=2,mem=64M]`.
pub(super) fn name(base: &str, choices: &[Choice]) -> Result<String> {
    if choices.is_empty() {
        return Ok(base.to_owned());
    }
    let mut parts = Vec::new();
    for (key, value) in choices {
        let shown = match value.plain()? {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        parts.push(format!("{key}={}", shown.replace(char::is_control, " ")));
    }
    Ok(format!("{base}[{}]", parts.join(",")))
}

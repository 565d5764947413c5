//! The spec: a TOML file that describes machines and what each must do. docs/boot-test.md lists its keys.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::input::{no_such_key, read_text, toml_error};
use super::matrix::{self, MAX_MACHINES, Matrix};
use super::node::Node;
use super::test::{self, Test};
use super::tinyvmm::{Keys, Tinyvmm};

/// Largest spec, in bytes.
const MAX_SPEC: u64 = 1 << 20;
const TOP_KEYS: [&str; 4] = ["baseline", "defaults", "machine", "matrix"];
/// What a machine's table has besides the keys of the machine and of the test.
const OWN_KEYS: [&str; 2] = ["matrix", "name"];
const MAX_NAME: usize = 100;

/// What a file asks for.
#[derive(Debug)]
pub(super) struct Spec {
    /// What the names of files in it are relative to.
    pub(super) folder: PathBuf,
    /// The file of figures that new ones are compared with.
    pub(super) baseline: Option<PathBuf>,
    pub(super) tests: Vec<Test>,
}

impl Spec {
    /// Reads `path`. Errors are one line with the line and the key.
    pub(super) fn read(path: &Path, known: &Keys) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let text = read_text(path, MAX_SPEC)?;
        Self::parse(&text, std::path::absolute(folder)?, known)
    }

    /// Has tinyvmm check each machine.
    pub(super) fn check(&mut self, tinyvmm: &Tinyvmm) -> Result<()> {
        let check = |test: &mut Test| test.machine.check(tinyvmm, &test.command, &self.folder);
        self.tests.iter_mut().try_for_each(check)
    }

    /// Reads the text of a spec in `folder`, with `known` as the keys that machines can have.
    pub(super) fn parse(text: &str, folder: PathBuf, known: &Keys) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|error| toml_error(text, &error))?;
        let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
        let top =
            Entries::read(&Node::root(text, &root), |key| TOP_KEYS.contains(&key), &TOP_KEYS)?;
        let baseline = top.get("baseline").map(Node::string).transpose()?;
        let defaults = match top.get("defaults") {
            Some(node) => Entries::read_machine(node, known, |key| !OWN_KEYS.contains(&key))?,
            None => Entries::default(),
        };
        let read_matrix = |node| Matrix::read(node, known);
        let matrix = top.get("matrix").map(read_matrix).transpose()?.unwrap_or_default();
        let machines = top.get("machine").map(|node| node.items("[[machine]]")).transpose()?;
        let mut tests = Vec::new();
        for node in machines.unwrap_or_default() {
            let context = (known, baseline.is_some());
            add_machine(&mut tests, &node, &defaults, &matrix, context)?;
        }
        if tests.is_empty() {
            bail!("line 1: machine: there is none, describe one under [[machine]]");
        }
        Ok(Self { baseline: baseline.map(|path| folder.join(path)), folder, tests })
    }
}

/// Adds what `node`, a `[[machine]]`, describes to `tests`.
fn add_machine<'a>(
    tests: &mut Vec<Test>,
    node: &Node<'a>,
    defaults: &Entries<'a>,
    matrix: &Matrix<'a>,
    context: (&Keys, bool),
) -> Result<()> {
    let own = Entries::read_machine(node, context.0, |_| true)?;
    let name = own.get("name").ok_or_else(|| node.error("it has no name: add name = \"...\""))?;
    let base = check_name(name)?;
    let theirs = own
        .get("matrix")
        .map(|node| Matrix::read(node, context.0))
        .transpose()?
        .unwrap_or_default();
    if let Some((key, node)) = own.0.iter().find(|(key, _)| theirs.has(key)) {
        return Err(node.error(format_args!("'{key}' is in this machine's matrix too")));
    }
    let matrix = matrix.narrowed(theirs, |key| own.get(key).is_some());
    if tests.len().saturating_add(matrix.len()) > MAX_MACHINES {
        return Err(node.error(format_args!("makes more than {MAX_MACHINES} machines in all")));
    }
    for choices in matrix.combinations() {
        let chosen = Entries(choices.clone());
        let keys = defaults.clone().overlaid(&own).overlaid(&chosen);
        let full_name = matrix::name(base, &choices)?;
        if tests.iter().any(|test| test.name == full_name) {
            return Err(name.error(format_args!("there is a machine '{full_name}' already")));
        }
        tests.push(Test::read(full_name, node, &keys, context)?);
    }
    Ok(())
}

/// A name is part of the names of files.
fn check_name<'a>(node: &Node<'a>) -> Result<&'a str> {
    let name = node.string()?;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() > MAX_NAME || !name.chars().all(good) || name.starts_with(['.', '-']) {
        return Err(node.error(format_args!(
            "'{}': say at most {MAX_NAME} letters, digits, '-', '_' and '.'",
            name.escape_debug()
        )));
    }
    Ok(name)
}

/// Keys with their values, in the file's order.
#[derive(Clone, Default)]
pub(super) struct Entries<'a>(Vec<(&'a str, Node<'a>)>);

impl<'a> Entries<'a> {
    fn read(node: &Node<'a>, is_key: impl Fn(&str) -> bool, known: &[&str]) -> Result<Self> {
        let entries = node.entries()?;
        if let Some((key, node)) = entries.iter().find(|(key, _)| !is_key(key)) {
            return Err(node.error(no_such_key(key, known.iter().copied())));
        }
        Ok(Self(entries))
    }

    fn read_machine(node: &Node<'a>, keys: &Keys, may: impl Fn(&str) -> bool) -> Result<Self> {
        let known = keys.names().chain(test::KEYS).chain(OWN_KEYS).filter(|key| may(key));
        let known: Vec<&str> = known.collect();
        Self::read(node, |key| known.contains(&key), &known)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, node)| node)
    }

    /// Those that are tinyvmm's.
    pub(super) fn of_machine(&self) -> impl Iterator<Item = &(&'a str, Node<'a>)> {
        let own = |key: &str| test::KEYS.contains(&key) || OWN_KEYS.contains(&key);
        self.0.iter().filter(move |(key, _)| !own(key))
    }

    /// These, but those that `other` has as `other` has them.
    fn overlaid(mut self, other: &Self) -> Self {
        self.0.retain(|(key, _)| other.get(key).is_none());
        self.0.extend(other.0.iter().cloned());
        self
    }
}

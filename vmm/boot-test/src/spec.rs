//! The spec: a TOML file that describes machines and what each must do. docs/boot-test.md lists its keys.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::input::{read_text, toml_error};
use super::matrix::{self, MAX_MACHINES, Matrix};
use super::node::Node;
use super::test::{KEYS, Test};
use super::tinyvmm::{MachineKeys, Tinyvmm};

/// Largest spec, in bytes.
const MAX_SPEC: u64 = 1 << 20;
const MAX_NAME: usize = 100;

/// The contents of a spec.
pub struct Spec {
    /// The folder to which the spec's paths are relative.
    pub folder: PathBuf,
    /// The file of figures to compare with.
    pub baseline: Option<PathBuf>,
    pub tests: Vec<Test>,
}

impl Spec {
    /// Reads the spec `path`. Errors are one line that names the line and the key.
    pub fn read(path: &Path, known: &MachineKeys) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let text = read_text(path, MAX_SPEC)?;
        Self::parse(&text, std::path::absolute(folder)?, known)
    }

    /// Has tinyvmm check each machine.
    pub fn check(&mut self, tinyvmm: &Tinyvmm) -> Result<()> {
        let check = |test: &mut Test| test.machine.check(tinyvmm, &test.command, &self.folder);
        self.tests.iter_mut().try_for_each(check)
    }

    /// Parses a spec in `folder`, whose machines can have the keys `known`.
    pub fn parse(text: &str, folder: PathBuf, known: &MachineKeys) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|error| toml_error(text, &error))?;
        let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
        let top = Node::root(text, &root).table(&["baseline", "defaults", "machine", "matrix"])?;
        let baseline = top.read("baseline", Node::string)?;
        let flags: Vec<&str> = known.keys().map(String::as_str).collect();
        let keys: Vec<&str> = flags.iter().copied().chain(KEYS).collect();
        let defaults = top.read("defaults", |node| node.table(&keys))?.unwrap_or_default();
        let read_matrix = |node: &_| Matrix::read(node, &flags);
        let matrix = top.read("matrix", read_matrix)?.unwrap_or_default();
        let keys = [keys.as_slice(), &["matrix", "name"]].concat();
        let mut tests: Vec<Test> = Vec::new();
        for node in top.read("machine", |node| node.items("[[machine]]"))?.unwrap_or_default() {
            let own = node.table(&keys)?;
            let no_name = || node.error("it has no name: add name = \"...\"");
            let name = own.get("name").ok_or_else(no_name)?;
            let theirs = own.read("matrix", read_matrix)?.unwrap_or_default();
            if let Some((key, node)) = own.0.iter().find(|(key, _)| theirs.has(key)) {
                bail!(node.error(format_args!("'{key}' is in this machine's matrix too")));
            }
            let matrix = matrix.narrowed(theirs, &own);
            let fits = tests.len().saturating_add(matrix.len()) <= MAX_MACHINES;
            ensure!(
                fits,
                node.error(format_args!("makes more than {MAX_MACHINES} machines in all"))
            );
            for chosen in matrix.combinations() {
                let full = matrix::name(check_name(name)?, &chosen)?;
                let taken = tests.iter().any(|test| test.name == full);
                ensure!(!taken, name.error(format_args!("there is a machine '{full}' already")));
                let keys = defaults.clone().overlaid(&own).overlaid(&chosen);
                tests.push(Test::read(full, &node, &keys, known, baseline.is_some())?);
            }
        }
        let none = "line 1: machine: there is none, describe one under [[machine]]";
        ensure!(!tests.is_empty(), none);
        Ok(Self { baseline: baseline.map(|path| folder.join(path)), folder, tests })
    }
}

/// Checks a name: it is part of the names of files.
fn check_name<'a>(node: &Node<'a>) -> Result<&'a str> {
    let name = node.string()?;
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = name.len() <= MAX_NAME && name.chars().all(is_good) && !name.starts_with(['.', '-']);
    let wanted = format!("say at most {MAX_NAME} letters, digits, '-', '_' and '.'");
    ensure!(good, node.error(format_args!("'{}': {wanted}", name.escape_debug())));
    Ok(name)
}

//! A configuration file: its keys are flags, and each flag knows its line.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory};
use serde::Deserialize;
use tinyvmm::config::text;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{Cli, usage};

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Reads a text file of at most `max` bytes, with or without a byte order mark. The file may be a pipe, or endless.
pub fn read_text(file: &Path, max: u64) -> Result<String> {
    let mut text = String::new();
    let read = |file: File| file.take(max + 1).read_to_string(&mut text);
    File::open(file).and_then(read).context("cannot read it")?;
    ensure!(text.len() as u64 <= max, "is larger than {} KiB", max >> 10);
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// The flags that a configuration file sets and the command line does not.
#[derive(Clone, Debug, Default)]
pub struct FileKeys {
    file: PathBuf,
    /// Each flag with its line.
    flags: Vec<(OsString, usize)>,
}

impl FileKeys {
    pub(super) fn read(file: &Path, given: &ArgMatches) -> Result<Self> {
        let text = read_text(file, MAX_CONFIG);
        let text = text.with_context(|| format!("configuration file {}", file.display()))?;
        let mut keys = Self { file: file.to_owned(), flags: Vec::new() };
        let table = DeTable::parse(&text);
        let table =
            table.map_err(|e| keys.at(line_of(&text, e.span()), anyhow!(one_toml_line(&e))))?;
        let command = Cli::command();
        let known: Vec<&Arg> = command.get_arguments().filter(|a| is_key(a)).collect();
        for (key, value) in table.get_ref() {
            let at = line_of(&text, Some(key.span()));
            let key = key.get_ref();
            let Some(arg) = known.iter().find(|arg| arg.get_long() == Some(key)) else {
                let known = known.iter().filter_map(|arg| arg.get_long());
                return Err(keys.at(at, no_such_key(key, known)));
            };
            if given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
                continue;
            }
            let items = value.get_ref().as_array().filter(|_| is_list(arg));
            for value in items.map_or(std::slice::from_ref(value), |items| &items[..]) {
                let line = line_of(&text, Some(value.span()));
                let flags = flags(key, value, arg, items.is_some());
                let flags = flags.map_err(|error| keys.at(line, error))?;
                keys.flags.extend(flags.into_iter().map(|flag| (flag, line)));
            }
        }
        Ok(keys)
    }

    /// The flags, without lines.
    pub(super) fn flags(&self) -> impl Iterator<Item = &OsString> + Clone {
        self.flags.iter().map(|(flag, _)| flag)
    }

    fn at(&self, line: usize, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("{}:{line}", self.file.display()))
    }

    /// Adds file and line to an error that begins with one of the flags.
    pub fn place(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let begins = |(flag, _): &&(OsString, usize), whole: bool| {
            let flag = flag.to_string_lossy();
            let (name, value) = flag.split_once('=').unwrap_or((&flag, ""));
            let rest = text.strip_prefix(name).filter(|rest| rest.starts_with([' ', ':']));
            rest.is_some_and(|rest| !whole || rest.trim_start().starts_with(value))
        };
        let mut flags = self.flags.iter();
        let exact = flags.clone().find(|flag| begins(flag, true));
        match exact.or_else(|| flags.find(|flag| begins(flag, false))) {
            Some((_, line)) => self.at(*line, error),
            None => error,
        }
    }
}

/// The flags that `key = value` stands for; `value` may be an item of a list.
fn flags(key: &str, value: &Spanned<DeValue>, arg: &Arg, is_item: bool) -> Result<Vec<OsString>> {
    let value = ValueDeserializer::from(value.clone());
    let value = toml::Value::deserialize(value).map_err(|e| anyhow!(one_toml_line(&e)))?;
    ensure!(!is_item || value.is_str() || value.is_table(), "{key}: say a list of strings");
    let value = match &value {
        toml::Value::Table(table) if is_list(arg) => toml::Value::String(options(key, table)?),
        _ => value,
    };
    let mut flags = Vec::new();
    push_flags(&mut flags, key, &value, arg)?;
    Ok(flags)
}

/// The flag's value that a table stands for: its `path`, then its other keys as options.
fn options(key: &str, table: &toml::Table) -> Result<String> {
    let path = table.get("path").and_then(toml::Value::as_str);
    let path = path.with_context(|| format!("{key}: say its file, as in path = \"root.img\""))?;
    let mut value = text::part(path);
    for (name, setting) in table.iter().filter(|(name, _)| *name != "path") {
        match setting {
            toml::Value::Boolean(false) => {}
            toml::Value::Boolean(true) => value += &format!(",{name}"),
            toml::Value::String(text) => value += &format!(",{name}={}", text::part(text)),
            toml::Value::Integer(number) => value += &format!(",{name}={number}"),
            other => bail!("{key}: {name} cannot be of type {}", other.type_str()),
        }
    }
    Ok(value)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// The line of `text` that `span` begins on.
fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let before = text.as_bytes().get(..span.map_or(0, |span| span.start)).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn one_toml_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', ", ")
}

/// Whether a flag is a key of configuration files too.
fn is_key(arg: &Arg) -> bool {
    arg.get_long()
        .is_some_and(|long| !["config", "print-config", "help", "version"].contains(&long))
}

/// Adds the flags that `key = value` of a configuration file stands for.
fn push_flags(flags: &mut Vec<OsString>, key: &str, value: &toml::Value, arg: &Arg) -> Result<()> {
    let mut push = |text: &dyn Display| flags.push(format!("--{key}={text}").into());
    match value {
        toml::Value::String(text) => push(text),
        toml::Value::Integer(number) => push(number),
        toml::Value::Boolean(on) => push(on),
        toml::Value::Array(items) if is_list(arg) => {
            for item in items {
                push(&item.as_str().ok_or_else(|| anyhow!("{key}: say a list of strings"))?);
            }
        }
        other => bail!("{key} cannot be of type {}: say a string", other.type_str()),
    }
    Ok(())
}

/// The error for an unknown key; suggests the nearest of `known`.
fn no_such_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> anyhow::Error {
    let known: Vec<_> = known.into_iter().collect();
    match usage::nearest(key, known.iter().copied()) {
        Some(near) => anyhow!("there is no key '{key}', the nearest is '{near}'"),
        // Listed in full where the list fits into a line.
        None if known.len() <= 12 => {
            anyhow!("there is no key '{key}', say {}", usage::either(&known))
        }
        None => anyhow!("there is no key '{key}': keys are the flags of tinyvmm --help"),
    }
}

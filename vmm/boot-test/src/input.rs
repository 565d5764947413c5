//! Files that users write, and the errors for mistakes in them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

/// Reads a text of at most `max` bytes and drops a byte order mark. The file may be a pipe, or endless.
pub fn read_text(file: &Path, max: u64) -> Result<String> {
    let mut text = String::new();
    let read = |file: File| file.take(max + 1).read_to_string(&mut text);
    File::open(file).and_then(read).context("cannot read it")?;
    ensure!(text.len() as u64 <= max, "is larger than {} KiB", max >> 10);
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

/// The line number of byte `at` of `text`.
pub fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The error for a text that is not TOML, with its line.
pub fn toml_error(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    anyhow!("line {line}: {}", error.message().replace('\n', ", "))
}

/// The error for a key that is none of `known`.
pub fn no_such_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let distance = |name: &&str| strsim::damerau_levenshtein(name, key);
    let nearest = known.into_iter().min_by_key(distance).unwrap_or_default();
    format!("there is no key '{key}', the nearest is '{nearest}'")
}

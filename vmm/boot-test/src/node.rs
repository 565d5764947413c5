//! A value of the spec with its place, so that every error names line and key.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use regex_lite::Regex;
use serde::Deserialize;
use toml::de::{DeValue, ValueDeserializer};
use toml::{Spanned, Value};

use super::input::{line_of, no_such_key};

/// Longest duration: a longer one is taken for a mistake.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A key's value, and its place.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    text: &'a str,
    path: String,
    /// Offset in `text`, in bytes.
    at: usize,
    value: &'a Spanned<DeValue<'a>>,
}

/// MachineKeys with their values, in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Table<'a>(pub Vec<(&'a str, Node<'a>)>);

impl<'a> Table<'a> {
    pub fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, node)| node)
    }

    /// The value of `key` read by `f`, if the key is there.
    pub fn read<T>(&self, key: &str, f: impl Fn(&Node<'a>) -> Result<T>) -> Result<Option<T>> {
        self.get(key).map(f).transpose()
    }

    /// This table with the values of `other` where both have the key.
    pub fn overlaid(mut self, other: &Self) -> Self {
        self.0.retain(|(key, _)| other.get(key).is_none());
        self.0.extend(other.0.iter().cloned());
        self
    }
}

impl<'a> Node<'a> {
    /// The whole of the file `text`.
    pub fn root(text: &'a str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { text, path: String::new(), at: 0, value }
    }

    /// `line N: KEY: WHAT`.
    pub fn error(&self, what: impl Display) -> anyhow::Error {
        anyhow!("{}: {what}", self.place())
    }

    /// `line N: KEY`.
    pub fn place(&self) -> String {
        let line = format!("line {}", line_of(self.text, self.at));
        if self.path.is_empty() { line } else { format!("{line}: {}", self.path) }
    }

    pub fn wrong_type(&self, wanted: &str) -> anyhow::Error {
        self.error(format_args!("is of type {}: say {wanted}", self.value.get_ref().type_str()))
    }

    pub fn string(&self) -> Result<&'a str> {
        let text = self.value.get_ref().as_str().ok_or_else(|| self.wrong_type("a string"))?;
        ensure!(!text.is_empty(), self.error("is empty"));
        Ok(text)
    }

    pub fn bool(&self) -> Result<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub fn integer(&self, range: RangeInclusive<u32>) -> Result<u32> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Value::Integer(number) = self.plain()? else {
            return Err(self.wrong_type(&wanted));
        };
        let number = u32::try_from(number).ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.error(format_args!("say {wanted}")))
    }

    /// A number that is not negative; `wanted` describes the valid values in the error.
    pub fn number(&self, wanted: &str) -> Result<f64> {
        let number = match self.plain()? {
            Value::Float(number) => number,
            #[expect(clippy::cast_precision_loss, reason = "a limit, not a count")]
            Value::Integer(number) => number as f64,
            _ => return Err(self.wrong_type(wanted)),
        };
        ensure!(number.is_finite() && number >= 0.0, self.error("say a number from 0 on"));
        Ok(number)
    }

    /// `10%` as 0.1.
    pub fn percentage(&self) -> Result<f64> {
        let number = self.string()?.strip_suffix('%').and_then(|text| text.trim().parse().ok());
        let good = number.filter(|number| (0.0..=1000.0).contains(number));
        good.map(|number: f64| number / 100.0).ok_or_else(|| self.error("say it as in \"10%\""))
    }

    /// A duration of more than 0 s.
    pub fn duration(&self) -> Result<Duration> {
        let text = self.string()?;
        let error = |what| self.error(format_args!("'{text}'{what}"));
        let duration = humantime::parse_duration(text)
            .map_err(|cause| error(format!(" ({cause}): say 30s or 5m")))?;
        let good = !duration.is_zero() && duration <= MAX_DURATION;
        ensure!(good, error(": say more than 0s and at most 7d".into()));
        Ok(duration)
    }

    pub fn regex(&self) -> Result<Regex> {
        let text = self.string()?;
        let error = |what| self.error(format_args!("'{text}' {what}"));
        let regex = Regex::new(text)
            .map_err(|cause| error(format!("is not a regular expression: {cause}")))?;
        ensure!(!regex.is_match(""), error("matches even an empty line".into()));
        Ok(regex)
    }

    /// The items of a list; `wanted` describes the valid values in the error.
    pub fn items(&self, wanted: &str) -> Result<Vec<Self>> {
        let items = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(wanted))?;
        let node = |value: &'a Spanned<_>| Self { at: value.span().start, value, ..self.clone() };
        Ok(items.iter().map(node).collect())
    }

    /// Reads each item of a list, or a string as a list of one.
    pub fn one_or_more<T>(&self, read: impl Fn(&Self) -> Result<T>) -> Result<Vec<T>> {
        match self.is_string() {
            true => Ok(vec![read(self)?]),
            false => self.items("a string or a list")?.iter().map(read).collect(),
        }
    }

    pub fn strings(&self) -> Result<Vec<String>> {
        let items = self.items("a list of strings")?;
        items.iter().map(|item| item.string().map(Into::into)).collect()
    }

    pub fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// A table whose keys are all among `known`.
    pub fn table(&self, known: &[&str]) -> Result<Table<'a>> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.wrong_type("a table"))?;
        let mut entries = Vec::new();
        for (key, value) in table {
            let name: &'a str = key.get_ref().as_ref();
            let path = [&self.path, name].join(".").trim_start_matches('.').to_owned();
            entries.push((name, Self { text: self.text, path, at: key.span().start, value }));
        }
        entries.sort_by_key(|(_, node)| node.at);
        match entries.iter().find(|(key, _)| !known.contains(key)) {
            Some((key, node)) => Err(node.error(no_such_key(key, known.iter().copied()))),
            None => Ok(Table(entries)),
        }
    }

    /// The value without its place.
    pub fn plain(&self) -> Result<Value> {
        let value = ValueDeserializer::from(self.value.clone());
        Value::deserialize(value).map_err(|error| self.error(error.message()))
    }
}

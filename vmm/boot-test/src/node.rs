//! A value of the spec that knows where it was written, so that every error names line and key.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use regex_lite::Regex;
use serde::Deserialize;
use toml::de::{DeValue, ValueDeserializer};
use toml::{Spanned, Value};

use super::input::line_of;

/// Longest duration that can be asked for: what is longer is a slip of the pen.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A key's value, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    text: &'a str,
    path: String,
    /// In bytes from the start of `text`.
    at: usize,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Node<'a> {
    /// The whole of the file `text`.
    pub(super) fn root(text: &'a str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { text, path: String::new(), at: 0, value }
    }

    /// `line N: KEY: WHAT`.
    pub(super) fn error(&self, what: impl Display) -> anyhow::Error {
        anyhow!("{}: {what}", self.place())
    }

    /// `line N: KEY`.
    pub(super) fn place(&self) -> String {
        let line = line_of(self.text, self.at);
        match self.path.as_str() {
            "" => format!("line {line}"),
            path => format!("line {line}: {path}"),
        }
    }

    pub(super) fn wrong_type(&self, wanted: &str) -> anyhow::Error {
        self.error(format_args!("is of type {}: say {wanted}", self.value.get_ref().type_str()))
    }

    pub(super) fn string(&self) -> Result<&'a str> {
        let value = self.value.get_ref();
        let text = value.as_str().ok_or_else(|| self.wrong_type("a string"))?;
        if text.is_empty() { Err(self.error("is empty")) } else { Ok(text) }
    }

    pub(super) fn bool(&self) -> Result<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(super) fn integer(&self, range: RangeInclusive<u32>) -> Result<u32> {
        let (least, most) = (range.start(), range.end());
        let wanted = format!("a whole number from {least} to {most}");
        let Value::Integer(number) = self.plain()? else {
            return Err(self.wrong_type(&wanted));
        };
        let number = u32::try_from(number).ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.error(format_args!("say {wanted}")))
    }

    /// A number that is not negative; `None` if this is no number.
    pub(super) fn number(&self) -> Result<Option<f64>> {
        let number = match self.plain()? {
            Value::Float(number) => number,
            #[expect(clippy::cast_precision_loss, reason = "a limit, not a count")]
            Value::Integer(number) => number as f64,
            _ => return Ok(None),
        };
        let good = number.is_finite() && number >= 0.0;
        if good { Ok(Some(number)) } else { Err(self.error("say a number from 0 on")) }
    }

    /// `10%` as 0.1.
    pub(super) fn percentage(&self) -> Result<f64> {
        let number = self.string()?.strip_suffix('%').and_then(|text| text.trim().parse().ok());
        let good = number.filter(|number| (0.0..=1000.0).contains(number));
        good.map(|number: f64| number / 100.0).ok_or_else(|| self.error("say it as in \"10%\""))
    }

    /// Longer than nothing.
    pub(super) fn duration(&self) -> Result<Duration> {
        let text = self.string()?;
        let duration = humantime::parse_duration(text);
        let duration = duration
            .map_err(|error| self.error(format_args!("'{text}' ({error}): say 30s or 5m")))?;
        if duration.is_zero() || duration > MAX_DURATION {
            return Err(self.error(format_args!("'{text}': say more than 0s and at most 7d")));
        }
        Ok(duration)
    }

    pub(super) fn regex(&self) -> Result<Regex> {
        let text = self.string()?;
        let regex = Regex::new(text).map_err(|error| {
            self.error(format_args!("'{text}' is not a regular expression: {error}"))
        })?;
        if regex.is_match("") {
            return Err(self.error(format_args!("'{text}' matches even an empty line")));
        }
        Ok(regex)
    }

    /// The items of a list; `wanted` says what else may be there.
    pub(super) fn items(&self, wanted: &str) -> Result<Vec<Self>> {
        let items = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(wanted))?;
        let path = || self.path.clone();
        let at = |item: &Spanned<_>| item.span().start;
        Ok(items
            .iter()
            .map(|value| Self { text: self.text, path: path(), at: at(value), value })
            .collect())
    }

    pub(super) fn strings(&self) -> Result<Vec<String>> {
        let items = self.items("a list of strings")?;
        items.iter().map(|item| item.string().map(Into::into)).collect()
    }

    pub(super) fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// What a table has, as written: in the file's order.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>> {
        let table = self.value.get_ref().as_table().ok_or_else(|| self.wrong_type("a table"))?;
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let name: &'a str = key.get_ref().as_ref();
                let path = match self.path.as_str() {
                    "" => name.to_owned(),
                    path => format!("{path}.{name}"),
                };
                (name, Self { text: self.text, path, at: key.span().start, value })
            })
            .collect();
        entries.sort_by_key(|(_, node)| node.at);
        Ok(entries)
    }

    /// The value without its place.
    pub(super) fn plain(&self) -> Result<Value> {
        let value = ValueDeserializer::from(self.value.clone());
        Value::deserialize(value).context("cannot be read").map_err(|error| self.error(error))
    }
}

//! Values that are serialized as text.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// `1 core`, `2 cores`.
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Refuses an option that is given twice, whatever its values.
pub fn ensure_once<'a>(options: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut names: Vec<_> = options.map(|option| option.split('=').next()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("'{}' is there twice", pair[0].unwrap_or_default())),
        None => Ok(()),
    }
}

/// For `#[serde(with = "text")]`.
pub fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// For `#[serde(with = "text")]`.
pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

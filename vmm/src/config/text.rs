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

/// The parts of `text` between commas. Two commas are one that belongs to a part, as in QEMU.
pub fn parts(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(letter);
        }
    }
    parts.push(part);
    parts
}

/// `part` as [`parts`] reads it.
pub fn part(part: impl Display) -> String {
    part.to_string().replace(',', ",,")
}

/// The one of `names` that `word` is the start of, or that has one letter in three wrong at most.
pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let slips = |name: &str| match word.len() {
        3.. if name.starts_with(word) => 1,
        _ => distance(word, name),
    };
    let near = names.map(|name| (slips(name), name));
    let near = near.filter(|(slips, name)| *slips <= name.len().max(word.len()) / 3);
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// Letters to insert, remove or change (Levenshtein's distance).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], at + 1);
        for (to, b) in other.bytes().enumerate() {
            let least = (before + usize::from(a != b)).min(row[to] + 1).min(row[to + 1] + 1);
            before = std::mem::replace(&mut row[to + 1], least);
        }
    }
    row[other.len()]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_within_a_part_is_written_twice() {
        for (text, expected) in [
            ("", &[""][..]),
            ("a", &["a"]),
            ("a,b,", &["a", "b", ""]),
            ("a,,b", &["a,b"]),
            (",,a,b=,,", &[",a", "b=,"]),
            ("a,,,b", &["a,", "b"]),
            ("a,,,,b", &["a,,b"]),
        ] {
            assert_eq!(parts(text), expected, "{text}");
            let escaped: Vec<_> = expected.iter().map(part).collect();
            assert_eq!(escaped.join(","), text);
        }
    }

    #[test]
    fn the_nearest_name_has_few_letters_wrong() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        let names = ["readonly", "direct", "overlay", "aio", "sector", "lock", "id"];
        for (word, name) in [
            ("readnly", Some("readonly")),
            ("read", Some("readonly")),
            ("diretc", Some("direct")),
            ("overlays", Some("overlay")),
            ("sect", Some("sector")),
            ("loc", Some("lock")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, names.into_iter()), name, "{word}");
        }
    }
}

//! Values of flags as text: read from it, and shown.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use uuid::Uuid;

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: say one as in 30s, 5m or 1h 30m"))
}

pub(super) fn uuid(text: &str) -> Result<Uuid, String> {
    let example = Uuid::from_u128(0x1234_5678_90ab_4def_8123_4567_890a_bcde);
    text.parse().map_err(|_| format!("say one as in {example}"))
}

/// Refuses an option that is there twice, whatever its values.
pub(super) fn ensure_once<'a>(options: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut names: Vec<_> = options.map(|option| option.split('=').next()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("'{}' is there twice", pair[0].unwrap_or_default())),
        None => Ok(()),
    }
}

pub(super) fn as_text<S: Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(super) fn opt_as_text<S: Serializer>(
    value: &Option<impl fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}

pub(super) fn each_as_text<S: Serializer>(
    values: &[impl fmt::Display],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

pub(super) fn as_duration<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.map(|d| humantime::format_duration(d).to_string()).serialize(serializer)
}

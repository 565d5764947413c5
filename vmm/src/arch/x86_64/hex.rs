//! Plain values as their bytes in hexadecimal, for serde: a tenth of the time that a list of numbers takes to read.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn encode(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn decode<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks();
    let byte = |[high, low]: &[u8; 2]| Some(value(*high)? << 4 | value(*low)?);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("no hexadecimal bytes"))
}

/// Serializes `value`.
pub fn serialize<T: IntoBytes + Immutable, S: Serializer>(
    value: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(&encode(value.as_bytes()))
}

/// Deserializes a `T`, of exactly its size.
pub fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let bytes = decode(from)?;
    T::read_from_bytes(&bytes).map_err(|_| {
        D::Error::custom(format!("{} bytes instead of {}", bytes.len(), size_of::<T>()))
    })
}

/// The same, for a list.
pub mod list {
    use super::*;

    /// Serializes all values, one after the other.
    pub fn serialize<T: IntoBytes + Immutable, S: Serializer>(
        values: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&encode(values.as_bytes()))
    }

    /// Deserializes whole values.
    pub fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let bytes = decode(from)?;
        let pieces = bytes.chunks(size_of::<T>()).map(|piece| T::read_from_bytes(piece).ok());
        pieces.collect::<Option<_>>().ok_or_else(|| D::Error::custom("no whole values"))
    }
}

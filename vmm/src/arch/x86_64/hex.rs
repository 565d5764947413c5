//! Plain values as their bytes in hexadecimal, for serde: a tenth of the time that a list of numbers takes to read.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// What is in [`VALUES`] for bytes that are no digit.
const NO_DIGIT: u8 = 0x80;
/// The value of each digit, by its byte.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

fn encode(bytes: &[u8]) -> String {
    let mut digits = vec![0; bytes.len() * 2];
    for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    String::from_utf8(digits).unwrap_or_default()
}

fn decode<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
    let (pairs, rest) = text.as_bytes().as_chunks();
    let mut seen = 0;
    let byte = |[high, low]: &[u8; 2]| {
        let [high, low] = [high, low].map(|digit| VALUES[usize::from(*digit)]);
        seen |= high | low;
        high << 4 | low
    };
    let bytes = pairs.iter().map(byte).collect();
    match seen < NO_DIGIT && rest.is_empty() {
        true => Ok(bytes),
        false => Err(D::Error::custom("no hexadecimal bytes")),
    }
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

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Saved(#[serde(with = "super")] [u8; 256]);

    #[test]
    fn each_byte_is_two_digits_and_nothing_else_is_read() {
        let all = Saved(std::array::from_fn(|byte| byte as u8));
        let text = serde_json::to_string(&all).unwrap();
        let expected: String = all.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, format!("\"{expected}\""));
        assert_eq!(serde_json::from_str::<Saved>(&text).unwrap(), all);
        for wrong in ["g", "A", "F", "/", ":", "`", " ", "\u{ff}"] {
            for at in [1, 2, 512] {
                let mut text = text.clone();
                text.replace_range(at..=at, wrong);
                assert!(serde_json::from_str::<Saved>(&text).is_err(), "{wrong} at {at}");
            }
        }
        assert!(serde_json::from_str::<Saved>(&text.replace("00", "0")).is_err());
        assert!(serde_json::from_str::<Saved>(&text.replace("00", "")).is_err());
    }
}

//! Sizes in bytes, as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

const UNITS: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Size {
    /// A size of `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    /// Parses `512M`, `512Mi`, `512MiB`, `512MB`, `4.5G` and plain bytes; units are powers of 1024.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err("a size cannot be negative, say one as in 512M".into());
        }
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let bad = || "say a number and K, M, G or T, as in 512M or 4.5G".to_owned();
        if number.is_empty() {
            return Err(bad());
        }
        let shift = shift_of(unit.trim())?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let mut bytes = u128::from(whole.parse::<u64>().map_err(|_| bad())?) << shift;
        if number.contains('.') {
            let digits: u64 = fraction.parse().map_err(|_| bad())?;
            let scale = 10u128.checked_pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
            bytes += (u128::from(digits) << shift) / scale.ok_or_else(bad)?;
        }
        u64::try_from(bytes).map(Self).map_err(|_| "more than 64 bits can count".into())
    }
}

/// The power of two that a unit stands for.
fn shift_of(unit: &str) -> Result<u32, String> {
    let upper = unit.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Ok(0);
    }
    let mut letters = upper.chars();
    let first = letters.next();
    let known = UNITS.iter().find(|(letter, _)| first == Some(*letter));
    let known = known.filter(|_| ["", "B", "I", "IB"].contains(&letters.as_str()));
    let unknown = || format!("'{unit}' is no unit, say K, M, G or T, as in 512M");
    known.map(|(_, shift)| *shift).ok_or_else(unknown)
}

impl fmt::Display for Size {
    /// Formats the size in the largest unit that leaves no remainder.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let exact = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().find(|(_, shift)| exact(*shift)) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("5", 5),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("512mb", 512 << 20),
            ("1Gi", 1 << 30),
            ("64ki", 64 << 10),
            (" 512M", 512 << 20),
            ("7B", 7),
            ("4.5G", 9 << 29),
            ("1P", 1 << 50),
            ("64 K", 64 << 10),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for (text, why) in [
            ("", "a number and K, M, G or T"),
            ("M", "a number and K, M, G or T"),
            ("Mi", "a number and K, M, G or T"),
            ("max=1G", "a number and K, M, G or T"),
            ("1X", "'X' is no unit"),
            ("1I", "'I' is no unit"),
            ("1iB", "'iB' is no unit"),
            ("1e9", "'e9' is no unit"),
            ("50%", "'%' is no unit"),
            ("1Mib1", "'Mib1' is no unit"),
            ("-1M", "negative"),
            ("1.M", "4.5G"),
            (".5G", "4.5G"),
            ("1..2G", "4.5G"),
            ("99999999999999999999", "4.5G"),
            ("20000P", "64 bits"),
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Size>();
        }
    }
}

//! The balloon, as the command line describes it.

use std::fmt;
use std::str::FromStr;

use super::Size;

/// Whether there is a balloon device, and how much memory it is to take at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonConfig {
    /// There is none.
    Off,
    /// There is one. Zero takes nothing.
    Target(Size),
}

impl FromStr for BalloonConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            size => size.parse().map(Self::Target).map_err(|error| format!("{error}, or off")),
        }
    }
}

impl fmt::Display for BalloonConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Target(size) => size.fmt(f),
        }
    }
}

//! The value of `--console`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Standard input and output.
    Stdio,
    /// Output to this file; no input.
    File(PathBuf),
    /// Neither output nor input.
    Off,
}

impl FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "off" => Ok(Self::Off),
            "" => Err("say stdio, off or a file".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Off => f.write_str("off"),
        }
    }
}

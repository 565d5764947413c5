//! The balloon, as the command line describes it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Size;

/// What a balloon offers to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonFeatures {
    /// The guest may take memory out before it runs out of it.
    pub deflate_on_oom: bool,
    /// The guest may tell statistics.
    pub statistics: bool,
    /// The guest may tell what it has freed.
    pub reporting: bool,
}

impl Default for BalloonFeatures {
    fn default() -> Self {
        Self { deflate_on_oom: true, statistics: true, reporting: true }
    }
}

/// Whether there is a balloon device, and how much memory it is to take at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonConfig {
    /// There is none.
    Off,
    /// There is one. Zero takes nothing.
    Target(Size),
}

impl BalloonConfig {
    /// Checks it for a machine with so much memory.
    pub(super) fn validate(&self, mem: Size, hugepages: bool) -> Result<()> {
        let Self::Target(size) = self else { return Ok(()) };
        ensure!(*size < mem, "--balloon {size}: the machine has --mem {mem}, take less of it");
        ensure!(
            size.bytes() == 0 || !hugepages,
            "--balloon {size}: pages of --hugepages stay with the machine, leave one out"
        );
        Ok(())
    }
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

//! The configuration of the balloon.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Size;

/// The features that a balloon offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonFeatures {
    /// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may deflate the balloon before it runs out of memory.
    pub deflate_on_oom: bool,
    /// VIRTIO_BALLOON_F_STATS_VQ: the guest reports statistics.
    pub statistics: bool,
    /// VIRTIO_BALLOON_F_REPORTING: the guest reports free pages.
    pub reporting: bool,
    /// VIRTIO_BALLOON_F_FREE_PAGE_HINT: the guest names free pages when it is asked to.
    #[serde(default)]
    pub hinting: bool,
}

impl Default for BalloonFeatures {
    fn default() -> Self {
        Self { deflate_on_oom: true, statistics: true, reporting: true, hinting: false }
    }
}

/// Whether there is a balloon device, and its first target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonConfig {
    /// No balloon device.
    Off,
    /// A balloon device with this target, which may be 0.
    Target(Size),
}

impl BalloonConfig {
    /// Checks the configuration for a machine with `mem` of memory.
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

//! The flags of a machine that is made of a snapshot.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use serde::Serialize;

use super::whole_number;

/// The flags that say of what a machine is restored.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Snapshot")]
pub struct RestoreFlags {
    /// Go on from a snapshot, a folder that `tinyvmm ctl NAME snapshot DIR` has made, instead of booting a kernel
    ///
    /// The machine is what it was, with its memory, CPUs and devices. Any number of machines can go on from one
    /// snapshot: each has a layer of its own over the snapshot's disks, which is lost at its end, unless --disk names
    /// others for all of them. --net names other networks for its cards. A reboot ends the machine.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub restore: Option<PathBuf>,

    /// Start so many machines in the background, named NAME-1, NAME-2 and so on by --name, and print their names
    #[arg(long, value_name = "N", value_parser = whole_number::<1000>)]
    pub count: Option<u32>,

    /// Whether the guest finds out that it is a copy, so that its random numbers are others than those of other copies
    #[arg(long, value_name = "new|keep", default_value = "new", hide_possible_values = true)]
    pub identity: Identity,

    /// How the guest's clocks go on: from where they were, or with the time that has passed on the host
    #[arg(
        long,
        value_name = "continue|host",
        default_value = "continue",
        hide_possible_values = true
    )]
    pub clock: Clock,
}

/// Whether a guest finds out that it is a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// It does.
    #[default]
    New,
    /// It does not: no other copy of it runs.
    Keep,
}

/// How a guest's clocks go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// As if no time had passed.
    #[default]
    Continue,
    /// As the host's.
    Host,
}

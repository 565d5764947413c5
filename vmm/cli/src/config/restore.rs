//! The flags of a machine that is made of a snapshot.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum, ValueHint};
use serde::Serialize;

use super::{SWITCH, whole_number};

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

    /// Boot up to COMMAND once, keep the machine as it is then, and have later runs go on from there
    ///
    /// What is kept, in ~/.cache/tinyvmm/templates, knows nothing of COMMAND. It is made anew when the kernel, the initrd,
    /// a disk, a flag of the machine, tinyvmm or the host is another. Each run is a machine of its own, as with --restore.
    /// `tinyvmm cache` lists templates and removes them.
    #[arg(long, value_name = SWITCH, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub template: bool,

    /// How this process has to do with a template.
    #[arg(skip)]
    #[serde(skip)]
    pub role: TemplateRole,

    /// Start so many machines in the background, named NAME-1, NAME-2 and so on by --name, and print their names
    #[arg(long, value_name = "N", value_parser = whole_number::<1000>)]
    pub count: Option<u32>,

    /// The host name of the machine that is made of a snapshot; without it, the machine's name
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub hostname: Option<String>,

    /// Whether the machine becomes another one than that of the snapshot, or goes on as that
    ///
    /// A new one has a UUID and addresses of cards of its own, and its guest finds out that it is a copy, so that its
    /// random numbers are others (Linux 5.18, CONFIG_VMGENID). The agent in the guest, if there is one, gives it a new host
    /// name, machine-id and seed of random numbers, and the host's time of day.
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

/// A host name as `hostname` takes it (hostname(7)): at most 64 characters.
fn host_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('-') {
        true => Ok(text.to_owned()),
        false => Err("say 1 to 64 letters, digits, -, . and _, not - first".into()),
    }
}

/// How a process has to do with a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TemplateRole {
    /// It has not.
    #[default]
    None,
    /// Its machine is to be saved as one, when the agent has connected to its standard input.
    Makes,
    /// Its machine goes on from one, and is asked to take its identity and to run COMMAND.
    Uses,
}

/// Whether a guest becomes another machine.
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

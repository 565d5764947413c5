//! `--print-config`: prints the machine as a configuration file, or as JSON for programs.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use log::LevelFilter;
use serde::Serialize;

use tinyvmm::config::DiskConfig;

use crate::config::Config;

/// The form in which a machine is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrintFormat {
    /// A configuration file.
    Toml,
    /// JSON, with what the machine takes from the host.
    Json,
}

#[derive(Serialize)]
struct Printed<'a> {
    config: AllKeys<'a>,
    command: &'a [String],
    cpus: u32,
    /// Bytes.
    memory: u64,
    disks: Vec<DiskFile<'a>>,
}

/// Every key of a configuration file.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct AllKeys<'a> {
    #[serde(flatten)]
    config: &'a Config,
    log_level: String,
}

/// A file of a disk: its image, or the layer that takes its writes.
#[derive(Serialize)]
struct DiskFile<'a> {
    path: &'a Path,
    /// Whether other machines may have it open at the same time.
    shared: bool,
}

/// The machine as a configuration file.
pub fn toml(config: &Config) -> Result<String> {
    Ok(toml::to_string(config)?)
}

/// The machine as JSON, with `level` of messages; keys that are not set are `null`.
pub fn json(config: &Config, level: LevelFilter) -> Result<String> {
    let machine = &config.machine.0;
    let printed = Printed {
        config: AllKeys { config, log_level: level.to_string().to_lowercase() },
        command: &config.process.command,
        cpus: machine.cpus.count(),
        memory: machine.mem.bytes(),
        disks: machine
            .disk
            .iter()
            .flat_map(DiskConfig::files)
            .map(|(path, shared)| DiskFile { path, shared })
            .collect(),
    };
    Ok(serde_json::to_string_pretty(&printed)? + "\n")
}

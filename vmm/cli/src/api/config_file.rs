//! `--config-file`: the bodies of Firecracker's API in one file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::bodies::{
    BalloonBody, BootSource, CpuConfig, Drive, Entropy, Logger, MachineConfiguration,
    MemoryHotplug, MetricsBody, NetworkInterface, Serial, VsockBody, or_default,
};
use super::routes::Configure;
use crate::cli;

/// The fields of a file. Other names are accepted with null: some clients write names that Firecracker does not have.
const FIELDS: [&str; 14] = [
    "boot-source",
    "drives",
    "machine-config",
    "balloon",
    "entropy",
    "serial",
    "logger",
    "metrics",
    "cpu-config",
    "network-interfaces",
    "pmem",
    "vsock",
    "mmds-config",
    "memory-hotplug",
];
/// Largest file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    boot_source: BootSource,
    #[serde(default, deserialize_with = "or_default")]
    drives: Vec<Drive>,
    machine_config: Option<MachineConfiguration>,
    balloon: Option<BalloonBody>,
    entropy: Option<Entropy>,
    serial: Option<Serial>,
    logger: Option<Logger>,
    metrics: Option<MetricsBody>,
    cpu_config: Option<Value>,
    #[serde(default, deserialize_with = "or_default")]
    network_interfaces: Vec<NetworkInterface>,
    #[serde(default, deserialize_with = "or_default")]
    pmem: Vec<IgnoredAny>,
    vsock: Option<VsockBody>,
    mmds_config: Option<IgnoredAny>,
    memory_hotplug: Option<MemoryHotplug>,
}

/// The CPU template that `source` is, or whose file it names.
fn cpu_config(source: Value) -> Result<CpuConfig> {
    let (name, text) = match source {
        Value::String(path) => {
            let name = format!("cpu-config {path}");
            (name.clone(), cli::read_text(Path::new(&path), MAX_BYTES).context(name)?)
        }
        here => ("cpu-config".to_owned(), here.to_string()),
    };
    serde_json::from_slice(text.as_bytes()).context(name)
}

/// The configuration in the file at `path`, in the order in which it is applied.
pub(super) fn read(path: &Path) -> Result<Vec<Configure>> {
    let text = cli::read_text(path, MAX_BYTES)?;
    let file: File = serde_json::from_str(&text)?;
    for (name, is_there) in
        [("pmem", !file.pmem.is_empty()), ("mmds-config", file.mmds_config.is_some())]
    {
        ensure!(!is_there, "{name}: not supported yet, leave it out");
    }
    let all: BTreeMap<String, Option<IgnoredAny>> = serde_json::from_str(&text)?;
    for (name, value) in all {
        ensure!(value.is_none() || FIELDS.contains(&name.as_str()), "unknown field `{name}`");
    }
    let mut steps = Vec::new();
    steps.extend(file.logger.map(Configure::Logger));
    steps.extend(file.metrics.map(Configure::Metrics));
    steps.extend(file.machine_config.map(Configure::Machine));
    steps.extend(file.cpu_config.map(cpu_config).transpose()?.map(Configure::Cpu));
    steps.push(Configure::BootSource(file.boot_source));
    steps.extend(file.drives.into_iter().map(Configure::Drive));
    steps.extend(file.network_interfaces.into_iter().map(Configure::Interface));
    steps.extend(file.vsock.map(Configure::Vsock));
    steps.extend(file.balloon.map(Configure::Balloon));
    steps.extend(file.memory_hotplug.map(Configure::Memory));
    steps.extend(file.entropy.map(Configure::Entropy));
    steps.extend(file.serial.map(Configure::Serial));
    Ok(steps)
}

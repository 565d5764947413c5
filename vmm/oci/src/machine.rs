//! The machine of a container, as flags of `tinyvmm`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Spec;

/// The machine's kernel and whatever else all of them have, as a file for `tinyvmm --config`, or the variable that names it.
const SETTINGS: &str = "/etc/tinyvmm/oci.toml";
const SETTINGS_NAME: &str = "TINYVMM_OCI_SETTINGS";
/// What a description may say of its machine, by itself.
const CPUS: &str = "tinyvmm.cpus";
const MEM: &str = "tinyvmm.mem";
/// A machine without a limit has this; the host has as much of it as the guest has used.
const DEFAULT_MEM: &str = "1G";
/// Least RAM, in MiB: what a kernel needs with some room.
const LEAST_MIB: i64 = 64;
/// Most CPUs that nobody has asked for.
const MOST_CPUS: usize = 2;

/// `tinyvmm`, beside this program or in PATH.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join("tinyvmm")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "tinyvmm".into())
}

/// Kernel, CPUs and RAM.
pub fn flags(spec: &Spec) -> Result<Vec<String>> {
    let path = std::env::var(SETTINGS_NAME).unwrap_or_else(|_| SETTINGS.into());
    let settings = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path == SETTINGS => None,
        text => Some(text.with_context(|| path.clone())?),
    };
    let says = |key: &str| {
        let line = |line: &str| line.trim_start().starts_with(key);
        settings.as_ref().is_some_and(|text| text.lines().any(line))
    };
    let mut flags = Vec::new();
    let mut add = |flag: &str, value: String| flags.extend([flag.to_owned(), value]);
    if settings.is_some() {
        add("--config", path);
    } else {
        let (kernel, modules) = own_kernel()?;
        add("--kernel", kernel);
        add("--modules", modules);
    }
    let mem = annotation(spec, MEM).or(mem_of(spec));
    if let Some(mem) = mem.or((!says("mem")).then(|| DEFAULT_MEM.into())) {
        add("--mem", mem);
    }
    let own = || std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_CPUS));
    let cpus = annotation(spec, CPUS).or(cpus_of(spec));
    if let Some(cpus) = cpus.or((!says("cpus")).then(|| own().to_string())) {
        add("--cpus", cpus);
    }
    Ok(flags)
}

/// The host's own kernel and its modules.
fn own_kernel() -> Result<(String, String)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the host's kernel")?;
    let release = release.trim();
    let (kernel, modules) = (format!("/boot/vmlinuz-{release}"), format!("/lib/modules/{release}"));
    ensure!(
        Path::new(&kernel).exists(),
        "no kernel for the machine: write kernel = \"FILE\" into {SETTINGS}, as guest-images/build kernel-small makes one"
    );
    Ok((kernel, modules))
}

fn annotation(spec: &Spec, name: &str) -> Option<String> {
    spec.annotations().as_ref()?.get(name).cloned()
}

/// The limit of memory, in whole MiB.
fn mem_of(spec: &Spec) -> Option<String> {
    let memory = spec.linux().as_ref()?.resources().as_ref()?.memory().as_ref()?;
    let bytes = memory.limit().filter(|bytes| *bytes > 0)?;
    Some(format!("{}M", (bytes >> 20).max(LEAST_MIB)))
}

/// As many CPUs as the quota is worth, rounded up.
fn cpus_of(spec: &Spec) -> Option<String> {
    let cpu = spec.linux().as_ref()?.resources().as_ref()?.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    Some(quota.div_ceil(period).min(host).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn limits_are_the_machines_size() {
        let spec = |memory: Value, cpu: Value| -> Spec {
            let linux = json!({"resources": {"memory": memory, "cpu": cpu}});
            serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": linux})).unwrap()
        };
        let none = spec(json!({}), json!({}));
        assert_eq!((mem_of(&none), cpus_of(&none)), (None, None));
        let some = spec(json!({"limit": 300 << 20}), json!({"quota": 150_000, "period": 100_000}));
        assert_eq!(mem_of(&some).as_deref(), Some("300M"));
        let host = std::thread::available_parallelism().unwrap().get();
        assert_eq!(cpus_of(&some), Some(2.min(host).to_string()));
        let least = spec(json!({"limit": 1 << 20}), json!({"quota": -1}));
        assert_eq!((mem_of(&least).as_deref(), cpus_of(&least)), (Some("64M"), None));
    }
}

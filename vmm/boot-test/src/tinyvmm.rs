//! The interface of the `tinyvmm` command: its answers about flags and about this host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The `tinyvmm` command.
pub struct Tinyvmm<'a> {
    pub program: &'a Path,
}

/// The keys that a configuration file can have, with their defaults.
pub type MachineKeys = Map<String, Value>;

/// Reads what `tinyvmm --print-config=json` prints.
pub fn parse_keys(json: &[u8]) -> Result<MachineKeys> {
    let printed: Value = serde_json::from_slice(json).context("tinyvmm --print-config=json")?;
    let keys = printed["config"].as_object().context("tinyvmm --print-config=json has no keys")?;
    // A name in a spec is the test's. The runner waits for its machines.
    let is_for_tests = |(key, _): &(&String, _)| !["name", "detach"].contains(&&***key);
    Ok(keys.iter().filter(is_for_tests).map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// What a machine takes from the host.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Needs {
    pub cpus: u32,
    /// In bytes.
    pub memory: u64,
    pub disks: Vec<DiskFile>,
}

/// A file that a disk is made of.
#[derive(Clone, Debug, Deserialize)]
pub struct DiskFile {
    pub path: PathBuf,
    /// Whether other machines may have it open at the same time.
    pub shared: bool,
}

/// The findings of doctor's `report` with this `status`, each with its remedy.
pub fn advice(report: &Value, status: &str) -> Vec<String> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let text = |finding: &Value| {
        let parts = ["name", "detail", "remedy"].map(|key| finding[key].as_str());
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    };
    findings.filter(|finding| finding["status"] == status).map(text).collect()
}

impl Tinyvmm<'_> {
    /// The keys that a machine can have.
    pub fn keys(&self) -> Result<MachineKeys> {
        // A machine without a kernel is invalid; the keys are printed all the same.
        parse_keys(&self.output(&["--print-config=json".into()], Path::new("."))?.stdout)
    }

    /// What the machine with `flags` takes, with `words` as its command and paths relative to `cwd`; or why it is
    /// invalid.
    pub fn needs(&self, flags: &[OsString], words: &[String], cwd: &Path) -> Result<Needs> {
        let mut all = [&["--print-config=json".into()], flags].concat();
        if !words.is_empty() {
            all.push("--".into());
            all.extend(words.iter().map(Into::into));
        }
        let output = self.output(&all, cwd)?;
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).context("tinyvmm --print-config=json");
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().filter_map(|line| line.strip_prefix("tinyvmm: ")).next_back();
        let reason = reason.map_or_else(|| format!("tinyvmm ended: {}", output.status), Into::into);
        bail!("{reason}")
    }

    /// The output of `tinyvmm doctor` on this host.
    pub fn doctor(&self) -> Result<Value> {
        let output = self.output(&["doctor".into(), "--json".into()], Path::new("."))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("tinyvmm doctor --json: {}", output.status))
    }

    fn output(&self, flags: &[OsString], cwd: &Path) -> Result<Output> {
        let mut command = Command::new(self.program);
        // The command reads nothing, and doctor has to report a host without /dev/null.
        command.args(flags).current_dir(cwd).stdin(Stdio::inherit());
        command.output().with_context(|| format!("cannot start {}", self.program.display()))
    }
}

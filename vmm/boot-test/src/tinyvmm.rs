//! The `tinyvmm` command: what it says of flags, and of this host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The command, a program of that interface.
pub(super) struct Tinyvmm<'a> {
    pub(super) program: &'a Path,
}

/// The keys that a configuration file can have.
#[derive(Deserialize)]
pub(super) struct Keys {
    config: Map<String, Value>,
}

/// What a machine takes from the host.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Needs {
    pub(super) cpus: u32,
    /// In bytes.
    pub(super) memory: u64,
    pub(super) disks: Vec<DiskFile>,
}

/// A file that a disk is made of.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct DiskFile {
    pub(super) path: PathBuf,
    /// Whether other machines may have it open at the same time.
    pub(super) shared: bool,
}

/// The report of `tinyvmm doctor --json`.
pub(super) struct HostReport(Value);

impl Keys {
    /// Reads what `tinyvmm --print-config=json` prints.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("tinyvmm --print-config=json")
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.config.keys().map(String::as_str)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.config.contains_key(name)
    }

    /// Whether `name` may be given several times.
    pub(super) fn is_list(&self, name: &str) -> bool {
        self.config.get(name).is_some_and(Value::is_array)
    }
}

impl HostReport {
    /// The findings that are `status`, each with its remedy.
    pub(super) fn advice(&self, status: &str) -> Vec<String> {
        let findings = self.0["findings"].as_array().into_iter().flatten();
        let text = |finding: &Value| {
            let parts = ["name", "detail", "remedy"].map(|key| finding[key].as_str());
            parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
        };
        findings.filter(|finding| finding["status"] == status).map(text).collect()
    }
}

impl Tinyvmm<'_> {
    /// The keys that a machine can have.
    pub(super) fn keys(&self) -> Result<Keys> {
        // Without a kernel it is no machine; the keys are printed even so.
        Keys::parse(&self.run(&mut self.command(&["--print-config=json"]))?.stdout)
    }

    /// What the machine with `flags` takes, with `words` as its command and paths relative to `folder`;
    /// or why there can be no such machine.
    pub(super) fn needs(
        &self,
        flags: &[OsString],
        words: &[String],
        folder: &Path,
    ) -> Result<Needs> {
        let mut command = self.command(&["--print-config=json"]);
        command.args(flags).current_dir(folder);
        if !words.is_empty() {
            command.arg("--").args(words);
        }
        let output = self.run(&mut command)?;
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).context("tinyvmm --print-config=json");
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().filter_map(|line| line.strip_prefix("tinyvmm: ")).next_back();
        match reason {
            Some(reason) => bail!("{reason}"),
            None => bail!("tinyvmm --print-config=json: {}", output.status),
        }
    }

    /// What this host can do.
    pub(super) fn doctor(&self) -> Result<HostReport> {
        let output = self.run(&mut self.command(&["doctor", "--json"]))?;
        let report = serde_json::from_slice(&output.stdout);
        report.map(HostReport).with_context(|| format!("tinyvmm doctor --json: {}", output.status))
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        // It reads nothing, and a host without /dev/null is to be reported by doctor.
        command.args(flags).stdin(Stdio::inherit());
        command
    }

    fn run(&self, command: &mut Command) -> Result<Output> {
        command.output().with_context(|| format!("cannot start {}", self.program.display()))
    }
}

//! The console of a run, in a file of bounded size that is kept if the run fails.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Largest log, in bytes: what comes after that is not kept.
pub(super) const MAX_LOG: u64 = 16 << 20;

/// A log that is being written.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    left: u64,
    /// The first error, e.g. a full disk.
    error: Option<std::io::Error>,
}

impl Log {
    /// Makes `folder`/`name`.log anew.
    pub(super) fn create(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.log"));
        let file = File::create(&path).with_context(|| format!("log {}", path.display()))?;
        Ok(Self { path, file, left: MAX_LOG, error: None })
    }

    /// Adds what the guest has printed.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.left == 0 {
            return;
        }
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.put(bytes.get(..len).unwrap_or_default());
        self.left -= len as u64;
        if self.left == 0 {
            self.note(&format!("the log ends here, after {} MiB", MAX_LOG >> 20));
        }
    }

    /// Adds a line of the runner's own.
    pub(super) fn note(&mut self, line: &str) {
        self.put(format!("\n[tinyvmm boot-test: {line}]\n").as_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        if let (None, Err(error)) = (&self.error, self.file.write_all(bytes)) {
            self.error = Some(error);
        }
    }

    /// Where it is, and what went wrong with it if something did.
    pub(super) fn keep(self) -> (PathBuf, Option<String>) {
        let told = |error| format!("log {}: {error}", self.path.display());
        (self.path.clone(), self.error.map(told))
    }

    /// Takes the file away.
    pub(super) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// `name` as part of a file's name, unlike that of any other test: `boot[cpus=2]` as `boot_cpus=2_`,
/// with `index` where characters had to be replaced.
pub(super) fn file_name(name: &str, index: usize) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.=,".contains(c);
    let start = name.chars().take(120);
    let kept: String = start.map(|c| if good(c) { c } else { '_' }).collect();
    if kept == name { kept } else { format!("{kept}{index}") }
}

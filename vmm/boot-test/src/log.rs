//! The console of a run, in a file of bounded size that is kept if its test fails.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::schedule::Job;

/// Largest log, in bytes: output beyond that is dropped.
pub const MAX_LOG: u64 = 16 << 20;

/// A log that is being written.
pub struct Log {
    pub path: PathBuf,
    file: File,
    left: u64,
    /// The first error, e.g. a full disk.
    pub error: Option<String>,
}

impl Log {
    /// Creates or overwrites `folder`/`name`.log.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.log"));
        let file = File::create(&path).with_context(|| format!("log {}", path.display()))?;
        Ok(Self { path, file, left: MAX_LOG, error: None })
    }

    /// Adds output of the guest.
    pub fn write(&mut self, bytes: &[u8]) {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.put(bytes.get(..len).unwrap_or_default());
        self.left -= len as u64;
        if self.left == 0 && len > 0 {
            self.note(&format!("the log ends here, after {} MiB", MAX_LOG >> 20));
        }
    }

    /// Adds a line of the runner.
    pub fn note(&mut self, line: &str) {
        self.put(format!("\n[tinyvmm boot-test: {line}]\n").as_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        if let (None, Err(error)) = (&self.error, self.file.write_all(bytes)) {
            self.error = Some(format!("log {}: {error}", self.path.display()));
        }
    }
}

/// The unique name of a job's log: `boot[cpus=2]` as `boot_cpus=2_7`, with the test's index where characters had to be
/// replaced, and `+2` behind it for the second of several runs.
pub fn file_name(Job { test, index, repetition }: &Job) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.=,".contains(c);
    let start = test.name.chars().take(120);
    let mut name: String = start.map(|c| if good(c) { c } else { '_' }).collect();
    if name != test.name {
        name += &index.to_string();
    }
    if test.repeat == 1 { name } else { format!("{name}+{repetition}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_log_is_bounded_and_says_so_and_why_it_failed() {
        let folder = std::env::temp_dir().join(format!("tinyvmm-log-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut log = Log::create(&folder, "m").unwrap();
        let part = vec![b'x'; 3 << 20];
        for _ in 0..7 {
            log.write(&part);
        }
        log.note("failed: why");
        assert_eq!(log.error, None);
        let text = fs::read_to_string(&log.path).unwrap();
        let notes = "\n[tinyvmm boot-test: the log ends here, after 16 MiB]\n\
                     \n[tinyvmm boot-test: failed: why]\n";
        assert_eq!(text.find('\n'), Some(16 << 20));
        assert!(text.ends_with(notes) && text.len() == (16 << 20) + notes.len());
        let log = Log::create(&folder, "m").unwrap();
        fs::remove_file(log.path).unwrap();
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn a_full_disk_is_reported_and_stops_nothing() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut log = Log { path: "full.log".into(), file, left: MAX_LOG, error: None };
        log.write(b"x");
        log.write(b"y");
        assert!(log.error.unwrap().starts_with("log full.log: No space left"));
    }
}

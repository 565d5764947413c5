//! The results of a spec, and the files for programs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;

use super::outcome::{Status, TestOutcome};

/// The results, also the JSON of them; docs/boot-test.md describes the fields.
#[derive(Default, Serialize)]
pub struct Results<'a> {
    schema: u32,
    version: &'static str,
    pub spec: String,
    /// The start, in ISO 8601.
    pub timestamp: String,
    pub seconds: f64,
    pub interrupted: bool,
    /// Why nothing could be run.
    pub error: Option<String>,
    pub passed: usize,
    pub failed: usize,
    pub not_run: usize,
    /// In the order of the spec.
    pub tests: Vec<TestOutcome<'a>>,
    /// doctor's findings that limit machines on this host.
    #[serde(skip)]
    pub advice: Vec<String>,
}

impl<'a> Results<'a> {
    /// The results of `spec` before anything is run.
    pub fn new(spec: &Path) -> Self {
        let (spec, timestamp) = (spec.display().to_string(), now());
        Self { schema: 1, version: env!("CARGO_PKG_VERSION"), spec, timestamp, ..Self::default() }
    }

    pub fn set_tests(&mut self, tests: Vec<TestOutcome<'a>>) {
        let count = |status| tests.iter().filter(|outcome| outcome.result == status).count();
        self.passed = count(Status::Passed);
        self.failed = count(Status::Failed);
        self.not_run = count(Status::NotRun);
        self.tests = tests;
    }

    pub fn json(&self) -> String {
        // Strings and numbers always serialize.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    pub fn all_passed(&self) -> bool {
        self.error.is_none() && self.passed == self.tests.len()
    }
}

/// The time in ISO 8601, in UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// A file for results, if the flag is given.
pub type ResultFile<'a> = Option<(&'a Path, File)>;

/// Creates the file before anything runs, so that an error is reported at once and not after an hour.
pub fn create(path: Option<&Path>) -> Result<ResultFile<'_>> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path).with_context(|| format!("result {}", path.display()))?;
    Ok(Some((path, file)))
}

pub fn write(file: ResultFile, text: &str) -> Result<()> {
    let Some((path, mut file)) = file else { return Ok(()) };
    file.write_all(text.as_bytes()).with_context(|| format!("result {}", path.display()))
}

//! The results of a spec, and the files that programs read them from.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;

use super::junit;
use super::outcome::{Outcome, Status};

/// What came of a spec, as it is in the JSON; docs/boot-test.md describes the fields.
#[derive(Serialize)]
pub(super) struct Results<'a> {
    schema: u32,
    version: &'static str,
    pub(super) spec: String,
    /// When it was, in ISO 8601.
    pub(super) timestamp: String,
    pub(super) seconds: f64,
    pub(super) interrupted: bool,
    /// Why nothing could be run.
    pub(super) error: Option<String>,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) not_run: usize,
    /// In the order of the spec.
    pub(super) tests: Vec<Outcome<'a>>,
    /// What limits machines on this host.
    #[serde(skip)]
    pub(super) advice: Vec<String>,
}

impl<'a> Results<'a> {
    /// Of `spec`, before anything is run.
    pub(super) fn new(spec: &Path) -> Self {
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            spec: spec.display().to_string(),
            timestamp: timestamp(SystemTime::now()),
            seconds: 0.0,
            interrupted: false,
            error: None,
            passed: 0,
            failed: 0,
            not_run: 0,
            tests: Vec::new(),
            advice: Vec::new(),
        }
    }

    pub(super) fn set_tests(&mut self, tests: Vec<Outcome<'a>>) {
        let count = |status| tests.iter().filter(|outcome| outcome.result == status).count();
        self.passed = count(Status::Passed);
        self.failed = count(Status::Failed);
        self.not_run = count(Status::NotRun);
        self.tests = tests;
    }

    pub(super) fn all_passed(&self) -> bool {
        self.error.is_none() && self.passed == self.tests.len()
    }
}

/// ISO 8601, in UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The files that are asked for. They are made before anything runs: not after an hour does the user
/// learn that one cannot be.
pub(super) struct ResultFiles<'a> {
    json: Option<(&'a Path, File)>,
    junit: Option<(&'a Path, File)>,
}

impl<'a> ResultFiles<'a> {
    pub(super) fn create(json: Option<&'a Path>, junit: Option<&'a Path>) -> Result<Self> {
        let create = |path: &'a Path| {
            let file = File::create(path).with_context(|| format!("result {}", path.display()))?;
            anyhow::Ok((path, file))
        };
        Ok(Self { json: json.map(create).transpose()?, junit: junit.map(create).transpose()? })
    }

    /// Writes all that can be written; the error is the first.
    pub(super) fn write(self, results: &Results) -> Result<()> {
        let write = |(path, mut file): (&Path, File), text: &str| {
            file.write_all(text.as_bytes()).with_context(|| format!("result {}", path.display()))
        };
        let text = serde_json::to_string_pretty(results)? + "\n";
        let json = self.json.map_or(Ok(()), |file| write(file, &text));
        let junit = self.junit.map_or(Ok(()), |file| write(file, &junit::junit(results)));
        json.and(junit)
    }
}

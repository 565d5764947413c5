//! Stands in for machines with names where the command is built without its API: the type has no values.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use tinyvmm::config::MachineConfig;
use tinyvmm::timeline::Mark;

use crate::config::{Config, ProcessConfig};
use crate::inbox::End;
use crate::jail::Jail;

/// Has no value.
pub enum Named {}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in names/mod.rs")]
impl Named {
    pub fn open(config: &Config, _: &Jail) -> Result<Option<Self>> {
        let process = &config.process;
        let wanted = process.name.is_some() || process.detach;
        ensure!(!wanted, "--name, --detach: this tinyvmm was built without its API");
        Ok(None)
    }
    pub fn copy(&self) -> Result<File> {
        match *self {}
    }
    pub fn serve(&mut self, _: &MachineConfig) -> Result<()> {
        match *self {}
    }
    pub fn ended(&mut self, _: &End) {
        match *self {}
    }
}

/// There is none.
pub fn vsock(_: &ProcessConfig) -> Option<PathBuf> {
    None
}

/// Never called with effect.
pub fn reached(_: Mark) {}

//! Stands in for the API where the command is built without it: its types have no values.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Error, Result, bail};
use tinyvmm::machine::{LiveMachine, Machine};

use crate::config::Config;
use crate::inbox::{End, Waker};
use crate::jail::Jail;
use crate::jail::landlock::AllowedPath;
use crate::measure::Record;
use crate::snapshot::{Restored, Subject};

/// Has no value.
pub enum Api {}

/// Has no value.
pub enum ApiCall {}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in api/mod.rs")]
impl Api {
    pub fn open(config: &Config, _: &Arc<Record>, _: Waker) -> Result<Option<Self>> {
        let process = &config.process;
        if process.api_sock.is_some() || process.config_file.is_some() {
            bail!("--api-sock, --config-file: this tinyvmm was built without its API");
        }
        Ok(None)
    }
    pub fn serve(&mut self, _: &Jail) -> Result<()> {
        match *self {}
    }
    pub fn explain(&self, _: Error) -> Error {
        match *self {}
    }
    pub fn started(&mut self, _: &LiveMachine) {
        match *self {}
    }
    pub fn is_complete(&self) -> bool {
        match *self {}
    }
    pub fn config(&self) -> Config {
        match *self {}
    }
    pub fn folder(&self) -> Option<&File> {
        match *self {}
    }
    pub fn places(&self) -> Result<Vec<AllowedPath>> {
        match *self {}
    }
    pub fn allow_opening(&mut self, _: bool) {
        match *self {}
    }
    pub fn take_restored(&mut self) -> Option<Restored> {
        match *self {}
    }
    pub fn forget_loaded(&mut self) {
        match *self {}
    }
    pub fn starts_paused(&self) -> bool {
        match *self {}
    }
    pub fn serve_before_start(&mut self) -> Option<Result<ApiCall, End>> {
        match *self {}
    }
    pub fn serve_calls(&mut self, _: &mut LiveMachine, _: &Subject) -> Option<End> {
        match *self {}
    }
    pub fn configure_again(&self, _: &mut Machine) -> Result<()> {
        match *self {}
    }
    pub fn metrics_due(&mut self) -> Option<Instant> {
        match *self {}
    }
    pub fn write_due_metrics(&mut self, _: &LiveMachine) -> bool {
        match *self {}
    }
    pub fn write_last_metrics(&mut self, _: &Machine, _: &End) {
        match *self {}
    }
}

impl ApiCall {
    /// Never called.
    pub fn answer(self, _: Result<()>) {
        match self {}
    }
}

//! Stands in for the command of a machine where tinyvmm is built without the agent: the type has no values.

use std::fs::File;

use anyhow::{Result, bail};
use tinyvmm::virtio::vsock::host::Host;

use crate::inbox::Waker;

/// Has no value.
pub enum GuestCommand {}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in exec/command.rs")]
impl GuestCommand {
    pub fn open(_: Option<&[u8]>) -> Result<Self> {
        bail!("this tinyvmm was built without the agent")
    }
    pub fn in_container(_: &[String]) -> Option<Vec<u8>> {
        None
    }
    pub fn of_template(_: &[String], _: &[u8], _: bool) -> Result<Self> {
        Self::open(None)
    }
    pub fn awaited() -> Result<Self> {
        Self::open(None)
    }
    pub fn connect(&mut self, _: &Host) -> Result<()> {
        match *self {}
    }
    pub fn source(&mut self, _: Waker) -> Result<Option<File>> {
        match *self {}
    }
    pub fn start(&mut self) -> Result<()> {
        match *self {}
    }
    pub fn use_console(&self) {
        match *self {}
    }
    pub fn finish(self) -> Option<u8> {
        match self {}
    }
}

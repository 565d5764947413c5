//! Stands in for the renewal of identities where the command is built without its agent: the type has no values.

use anyhow::{Result, bail};

use crate::config::Config;
use crate::snapshot::Restored;

/// Has no value.
pub enum Renewal {}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in identity.rs")]
impl Renewal {
    pub fn prepare(_: &Config, _: Option<&Restored>) -> Result<Option<Self>> {
        Ok(None)
    }
    pub fn begin(&mut self) {
        match *self {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in identity.rs")]
pub fn encoded(_: &Config, _: &Restored) -> Result<Vec<u8>> {
    bail!("this tinyvmm was built without the agent")
}

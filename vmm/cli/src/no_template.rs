//! Stands in for templates where the command is built without its agent: there are none.

use anyhow::{Result, bail};

use crate::config::Config;
use crate::snapshot::Restored;

#[allow(missing_docs, clippy::missing_errors_doc, reason = "as in template/mod.rs")]
pub fn adopt(_: &mut Config) -> Result<Option<Restored>> {
    bail!("--template: this tinyvmm was built without the agent")
}

/// There is nobody to blame.
pub fn blame(_: &Config) {}

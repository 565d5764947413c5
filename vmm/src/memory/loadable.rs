//! A file to be loaded into guest memory.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Result, ensure};

/// An open regular file.
pub struct Loadable {
    /// The file, at any position.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
    /// The path in messages.
    pub path: PathBuf,
}

impl Loadable {
    /// Takes an open file; `path` is for messages. Fails if it is no regular file.
    pub fn new(file: File, path: PathBuf) -> Result<Self> {
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "not a regular file: name one");
        Ok(Self { file, len: metadata.len(), path })
    }
}

//! A file in memory, with a name that can be opened.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;

/// A file with `contents`, which is removed when it is dropped.
pub struct MemoryFile(File);

impl MemoryFile {
    pub fn new(contents: &[u8]) -> Self {
        let file = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(contents, 0).unwrap();
        Self(file)
    }

    pub fn file(&self) -> &File {
        &self.0
    }

    /// The path of the file, for this process.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

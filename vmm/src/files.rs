//! What a machine is made of on the host, opened once: a machine that resets is built again of the same files.
//!
//! So nothing needs opening once a guest has run, and nobody can put another file in a file's place.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::config::MachineConfig;
use crate::disk_image::DiskImage;
use crate::x86_64::kernel::KernelFile;

/// The files that a configuration names.
pub struct Files {
    /// The kernel.
    pub kernel: KernelFile,
    /// The initial RAM disk, if there is one.
    pub initrd: Option<Loadable>,
    /// The disks, locked.
    pub disks: Vec<DiskImage>,
}

impl Files {
    /// Opens them.
    pub fn open(config: &MachineConfig) -> Result<Self> {
        let kernel = config.kernel.as_deref().context("no kernel: say --kernel FILE")?;
        let kernel = KernelFile::open(kernel)?;
        let initrd = |path: &PathBuf| {
            Loadable::open(path).with_context(|| format!("initrd {}", path.display()))
        };
        let initrd = config.initrd.as_ref().map(initrd).transpose()?;
        let disks = config.disk.iter().map(DiskImage::open).collect::<Result<_>>()?;
        Ok(Self { kernel, initrd, disks })
    }
}

/// Makes an empty file at `path` for what the machine of `config` prints. One that the machine is made of is refused.
///
/// Looked at once it is open: a file can have several names, and /dev/fd has one for each of ours.
pub fn create(path: &Path, config: &MachineConfig) -> Result<File> {
    // O_NONBLOCK: a named pipe without a reader is to be refused, not to be waited for.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let ours = file.metadata()?;
    let is_ours = |theirs: fs::Metadata| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
    for input in config.inputs() {
        let is_same = fs::metadata(input).is_ok_and(is_ours);
        ensure!(!is_same, "the same file as {}: name another", input.display());
    }
    if ours.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// A file to be loaded into guest memory.
pub struct Loadable {
    /// The file, wherever its position is.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
    /// Where it was, for messages.
    pub path: PathBuf,
}

impl Loadable {
    /// Opens the file.
    pub fn open(path: &Path) -> Result<Self> {
        // O_NONBLOCK: a named pipe is to be refused, not to be waited for.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.context("cannot open it")?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "not a regular file: name one");
        Ok(Self { file, len: metadata.len(), path: path.to_owned() })
    }
}

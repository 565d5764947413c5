//! The files that a machine is made of, opened once: a machine that resets is built again of the same files.
//!
//! So nothing is opened once a guest has run, and nobody can put another file in a file's place.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tinyvmm::arch::boot::Initrd;
use tinyvmm::arch::kernel::{KernelFile, KernelStore};
use tinyvmm::config::{DiskConfig, MachineConfig};
use tinyvmm::machine::{Files, Start};
use tinyvmm::memory::loadable::Loadable;

use crate::config::ProcessConfig;
use crate::{command, disks, kernel_cache, root_dir};

/// Opens the files that `machine` names.
pub fn open(machine: &MachineConfig, process: &ProcessConfig) -> Result<Files> {
    let start = kernel(machine, process)?;
    disks::ensure_apart(&machine.disk)?;
    let disks = machine.disk.iter().map(disks::open).collect::<Result<Vec<_>>>()?;
    for (config, disk) in machine.disk.iter().zip(&disks) {
        for warning in disks::warnings(config, disk) {
            log::warn!("disk {}: {warning}", config.path.display());
        }
    }
    Ok(Files { disks, ..Files::new(start) })
}

/// Opens the kernel and the initrd that `machine` names.
fn kernel(machine: &MachineConfig, process: &ProcessConfig) -> Result<Start> {
    let kernel = machine.kernel.as_deref().context("no kernel: say --kernel FILE")?;
    let kernel = loadable(kernel).with_context(|| format!("kernel {}", kernel.display()))?;
    let path = kernel.path.clone();
    let store = || Box::new(kernel_cache::Store::new(path)) as Box<dyn KernelStore>;
    let kernel = KernelFile::new(kernel, (!process.no_kernel_cache).then(store));
    let initrd = |path: &PathBuf| -> Result<Initrd> {
        let file = loadable(path).with_context(|| format!("initrd {}", path.display()))?;
        let prefix =
            command::archive(machine, &process.command, process.by_agent, process.has_listener());
        Ok(Initrd { file, prefix })
    };
    let initrd = match root_dir::initrd(process)? {
        None => machine.initrd.as_ref().map(initrd).transpose()?,
        of_root => of_root,
    };
    Ok(Start::Boot { kernel, initrd })
}

/// Opens a file that is to be loaded into guest memory.
pub fn loadable(path: &Path) -> Result<Loadable> {
    // O_NONBLOCK: a named pipe is refused instead of waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    Loadable::new(file.context("cannot open it")?, path.to_owned())
}

/// The files that a machine is made of.
fn inputs(config: &MachineConfig) -> impl Iterator<Item = &Path> {
    let disks = config.disk.iter().flat_map(DiskConfig::files).map(|(path, _)| path);
    config.kernel.iter().chain(&config.initrd).map(PathBuf::as_path).chain(disks)
}

/// Creates an empty file at `path` for the output of the machine of `config`. A file that the machine is made of is
/// refused.
///
/// The check is on the open file: a file can have several names, and /dev/fd has one for each open file.
pub fn create(path: &Path, config: &MachineConfig) -> Result<File> {
    // O_NONBLOCK: a named pipe without a reader is refused instead of waited for.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    let ours = file.metadata()?;
    let is_ours = |theirs: fs::Metadata| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
    for input in inputs(config) {
        let is_same = fs::metadata(input).is_ok_and(is_ours);
        ensure!(!is_same, "the same file as {}: name another", input.display());
    }
    if ours.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

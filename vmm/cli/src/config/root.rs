//! The folder of `--root-dir`, and what it adds to a machine.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use tinyvmm::config::text::{part, parts};
use tinyvmm::config::{MachineConfig, ShareConfig};

use super::ProcessConfig;

/// Tags of the shares, as the agent knows them (guest-images/agent/src/root.rs).
const ROOT: &str = "root";
const MODULES: &str = "modules";
/// The folder that is a guest's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDir {
    /// The folder.
    pub folder: PathBuf,
    /// What the guest writes is in the folder; if not, it is lost at the guest's end.
    pub is_written: bool,
}

impl FromStr for RootDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        let (folder, is_written) = match &parts[..] {
            [folder] if !folder.is_empty() => (folder, false),
            [folder, rw] if !folder.is_empty() && rw == "rw" => (folder, true),
            _ => return Err("say DIR or DIR,rw".into()),
        };
        Ok(Self { folder: folder.into(), is_written })
    }
}

impl fmt::Display for RootDir {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rw = if self.is_written { ",rw" } else { "" };
        write!(f, "{}{rw}", part(self.folder.display()))
    }
}

/// Adds the shares, in a machine that is built.
pub fn add_shares(machine: &mut MachineConfig, process: &ProcessConfig) {
    let Some(root) = &process.root_dir else { return };
    let share = |folder: &Path, tag: &str, readonly| ShareConfig {
        folder: folder.to_owned(),
        tag: tag.into(),
        readonly,
    };
    machine.share.push(share(&root.folder, ROOT, !root.is_written));
    let modules = process.modules.as_deref().map(modules);
    if let Some(folder) = modules.filter(|folder| folder.join("modules.dep").exists()) {
        machine.share.push(share(&folder, MODULES, true));
    }
}

/// The folder with the modules of one kernel: `folder`, or the only one in its lib/modules.
pub fn modules(folder: &Path) -> PathBuf {
    let kernels = fs::read_dir(folder.join("lib/modules")).into_iter().flatten().flatten();
    let mut kernels = kernels.map(|entry| entry.path());
    match (kernels.next(), kernels.next()) {
        (Some(only), None) => only,
        _ => folder.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_folder_that_may_be_written() {
        for text in ["/", "a,,b", "/srv,rw"] {
            assert_eq!(text.parse::<RootDir>().unwrap().to_string(), text);
        }
        for text in ["", ",rw", "/,ro", "/,rw,rw"] {
            assert!(text.parse::<RootDir>().unwrap_err().contains("DIR,rw"), "{text}");
        }
    }
}

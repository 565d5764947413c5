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
const FORM: &str = "say DIR, DIR,rw or DIR,rw,container[=NAME]";

/// The folder that is a guest's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDir {
    /// The folder.
    pub folder: PathBuf,
    /// What the guest writes is in the folder; if not, it is lost at the guest's end.
    pub is_written: bool,
    /// A container's root is this folder within it, or the folder itself if the name is empty: the agent runs the command,
    /// and there is nothing of a system but that.
    pub container: Option<String>,
}

impl FromStr for RootDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        let [folder, words @ ..] = &parts[..] else { return Err(FORM.into()) };
        let mut this = Self { folder: folder.into(), is_written: false, container: None };
        for word in words {
            let within = word.strip_prefix("container=").filter(|name| is_name(name));
            match (word.as_str(), within) {
                ("rw", _) if !this.is_written => this.is_written = true,
                ("container", _) if this.container.is_none() => this.container = Some("".into()),
                (_, Some(name)) if this.container.is_none() => this.container = Some(name.into()),
                _ => return Err(FORM.into()),
            }
        }
        let is_whole = !folder.is_empty() && (this.is_written || this.container.is_none());
        if is_whole { Ok(this) } else { Err(FORM.into()) }
    }
}

impl fmt::Display for RootDir {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rw = if self.is_written { ",rw" } else { "" };
        write!(f, "{}{rw}", part(self.folder.display()))?;
        match self.container.as_deref() {
            None => Ok(()),
            Some("") => write!(f, ",container"),
            Some(name) => write!(f, ",container={name}"),
        }
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(fits)
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
    // A container's folder gets no folders of ours.
    let modules = process.modules.as_deref().filter(|_| root.container.is_none()).map(modules);
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
        for text in ["/", "a,,b", "/srv,rw", "/a,rw,container", "/a,rw,container=b-1"] {
            assert_eq!(text.parse::<RootDir>().unwrap().to_string(), text);
        }
        for text in
            ["", ",rw", "/,ro", "/,rw,rw", "/,container", "/,rw,container=a/b", "/,rw,container="]
        {
            assert!(text.parse::<RootDir>().unwrap_err().contains("DIR,rw"), "{text}");
        }
    }
}

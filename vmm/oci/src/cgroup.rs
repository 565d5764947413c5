//! Control groups: the machine's processes are in the one that the engine names, so that it counts and limits them there.
//! With version 2 the limits are written; with version 1 they are the machine's own CPUs and RAM alone.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxResources, Spec};

const ALL: &str = "/sys/fs/cgroup";
/// Most bytes of the host's memory that a machine and its helpers take besides the guest's RAM.
const BESIDES: i64 = 128 << 20;
/// How long a group whose processes were ended may take until it is empty: tries, and their interval.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The folders of the group that `spec` names, which are made. None if it names none.
pub fn make(spec: &Spec, is_systemds: bool) -> Result<Vec<PathBuf>> {
    let linux = spec.linux().as_ref();
    let Some(path) = linux.and_then(|linux| linux.cgroups_path().as_deref()) else {
        return Ok(Vec::new());
    };
    let text = path.to_str().context("linux.cgroupsPath: not in UTF-8")?;
    let path = if is_systemds { of_systemd(text)? } else { text.trim_start_matches('/').into() };
    ensure!(
        !path.split('/').any(|part| part == ".."),
        "linux.cgroupsPath {text}: not a path of groups"
    );
    let folders: Vec<_> = roots(Path::new(ALL)).iter().map(|root| root.join(&path)).collect();
    for folder in &folders {
        fs::create_dir_all(folder).with_context(|| format!("cgroup {}", folder.display()))?;
    }
    if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
        limit(&folders, resources)?;
    }
    Ok(folders)
}

/// The trees of groups: one of version 2, or one for each controller of version 1.
fn roots(all: &Path) -> Vec<PathBuf> {
    if all.join("cgroup.controllers").exists() {
        return vec![all.to_owned()];
    }
    let trees = fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path());
    // cpuset takes no process before it is set up.
    let fits = |tree: &PathBuf| tree.join("cgroup.procs").exists() && !tree.ends_with("cpuset");
    trees.filter(|tree| !tree.is_symlink()).filter(fits).collect()
}

/// The path that systemd has for `slice:prefix:name` (systemd.slice(5)).
fn of_systemd(text: &str) -> Result<String> {
    let parts: Vec<_> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        anyhow::bail!("linux.cgroupsPath {text}: say slice:prefix:name, as systemd has it");
    };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.trim_end_matches(".slice");
    let mut path = String::new();
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        path += &format!("{}.slice/", &stem[..at]);
    }
    let unit =
        if name.ends_with(".slice") { name.into() } else { format!("{prefix}-{name}.scope") };
    Ok(path + &unit)
}

/// Writes the limits that the host's kernel can keep better than the guest's. They are of version 2.
fn limit(folders: &[PathBuf], resources: &LinuxResources) -> Result<()> {
    let [folder] = folders else { return Ok(()) };
    if !folder.join("cgroup.events").exists() {
        return Ok(());
    }
    enable_controllers(folder);
    let mut limits = Vec::new();
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    if let Some(bytes) = memory.filter(|bytes| *bytes > 0) {
        limits.push(("memory.max", bytes.saturating_add(BESIDES).to_string()));
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(quota) = cpu.quota().filter(|quota| *quota > 0) {
            limits.push(("cpu.max", format!("{quota} {}", cpu.period().unwrap_or(100_000))));
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            // As runc: 2 to 262144 become 1 to 10000.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            limits.push(("cpu.weight", weight.to_string()));
        }
    }
    for (file, value) in limits {
        let path = folder.join(file);
        match fs::write(&path, value) {
            // Who owns this part of the tree has not been given the controller: the machine's size is the limit.
            Err(error)
                if [ErrorKind::NotFound, ErrorKind::PermissionDenied].contains(&error.kind()) => {}
            done => done.with_context(|| path.display().to_string())?,
        }
    }
    Ok(())
}

/// Gives the groups above `folder` the controllers, as far as they are ours to give.
fn enable_controllers(folder: &Path) {
    let above: Vec<_> =
        folder.ancestors().skip(1).take_while(|path| path.starts_with(ALL)).collect();
    for group in above.into_iter().rev() {
        for controller in ["+memory", "+cpu"] {
            let _ = fs::write(group.join("cgroup.subtree_control"), controller);
        }
    }
}

/// Has this process be in the group, and all that it starts.
pub fn enter(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        fs::write(folder.join("cgroup.procs"), "0")
            .with_context(|| format!("cgroup {}", folder.display()))?;
    }
    Ok(())
}

/// Removes the group, in which no process should be any more.
pub fn remove(folders: &[PathBuf]) {
    for folder in folders {
        for _ in 0..TRIES {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => thread::sleep(PAUSE),
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_names_are_paths() {
        let path = |text| of_systemd(text).unwrap();
        assert_eq!(path("machine.slice:libpod:ab"), "machine.slice/libpod-ab.scope");
        assert_eq!(path("a-b.slice:cri:x"), "a.slice/a-b.slice/cri-x.scope");
        assert_eq!(path(":cri:x.slice"), "system.slice/x.slice");
        assert!(of_systemd("/a/b").unwrap_err().to_string().contains("slice:prefix:name"));
    }
}

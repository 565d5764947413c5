//! What the guest sees of the host: a folder with the container's root and, by their numbers, the files and folders that
//! its description binds. They are mounted there in a namespace of mounts that only the machine's processes are in, and
//! one virtiofsd serves them all. Nothing in the container's root is looked at here: places within it are the guest's to
//! make.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Spec;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::steps::{Way, way};
use crate::words::mount_options;

/// The name of the container's root in the folder.
pub const ROOT: &str = "root";

/// The container's root, as a path of the host.
pub fn root(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let root = spec.root().as_ref().context("config.json: no root")?;
    let path = bundle.join(root.path());
    ensure!(path.is_dir(), "root {}: it is no folder", path.display());
    Ok(path)
}

/// Enters a namespace of mounts and makes the folder of what the guest sees there, in the container's `folder`.
pub fn enter(spec: &Spec, bundle: &Path, folder: &Path) -> Result<PathBuf> {
    // SAFETY: this process has one thread, which shares its mounts with nothing else of it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a namespace of mounts")?;
    let spread = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", spread).context("cannot keep mounts apart")?;
    // Of the namespace of processes that `create` has made.
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", harmless, None).context("cannot mount /proc")?;
    let shared = folder.join("shared");
    fs::create_dir_all(&shared)?;
    mount("tmpfs", &shared, "tmpfs", MountFlags::NOSUID, c"mode=700,size=1m")
        .context("cannot mount a tmpfs")?;
    let place = shared.join(ROOT);
    fs::create_dir(&place)?;
    let source = root(spec, bundle)?;
    mount_bind_recursive(&source, &place).with_context(|| format!("root {}", source.display()))?;
    let mut number = 0;
    for mount in spec.mounts().iter().flatten() {
        let Way::Bind(source) = way(mount)? else { continue };
        let source = bundle.join(source);
        let (flags, _) = mount_options(mount.options().as_deref().unwrap_or_default());
        bind(&source, &shared.join(number.to_string()), flags).with_context(|| {
            format!("mount {}: {}", mount.destination().display(), source.display())
        })?;
        number += 1;
    }
    Ok(shared)
}

/// Mounts a file or folder at `place`, which is made.
fn bind(source: &Path, place: &Path, flags: MountFlags) -> Result<()> {
    if fs::metadata(source)?.is_dir() {
        fs::create_dir(place)?;
    } else {
        File::create(place)?;
    }
    mount_bind_recursive(source, place)?;
    if flags.contains(MountFlags::RDONLY) {
        // Whatever the guest does, it is not written.
        mount_remount(place, MountFlags::BIND | flags, "")?;
    }
    Ok(())
}

/// Removes what the guest has made in the container's root for itself.
pub fn tidy(spec: &Spec, bundle: &Path) {
    // Of the engine's root, whose name for it may be gone; and only if nothing is in it.
    if let Ok(root) = root(spec, bundle) {
        let _ = fs::remove_dir(root.join("tinyvmm"));
    }
}

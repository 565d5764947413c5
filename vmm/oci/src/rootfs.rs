//! What the guest sees of the host: a folder with the container's root and, by their numbers, the files and folders that
//! its description binds. They are mounted there in a namespace of mounts that only the machine's processes are in, and
//! one virtiofsd serves them all. Nothing in the container's root is looked at here: places within it are the guest's to
//! make.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{io, mem, ptr};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::Spec;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
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
        // Whatever the guest does, it is not written, nor what is mounted below it.
        lock(place).context("cannot make it read only")?;
    }
    Ok(())
}

/// Makes all mounts from `place` on read only (Linux 5.12).
fn lock(place: &Path) -> Result<()> {
    let path = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: it has numbers only, which may be zero.
    let mut all: libc::mount_attr = unsafe { mem::zeroed() };
    all.attr_set = libc::MOUNT_ATTR_RDONLY;
    let (len, flags) = (mem::size_of::<libc::mount_attr>(), libc::AT_RECURSIVE);
    let (folder, path, all) = (libc::AT_FDCWD, path.as_ptr(), ptr::from_ref(&all));
    // SAFETY: the call reads a path that ends with a zero byte, and `len` bytes of attributes.
    let done = unsafe { libc::syscall(libc::SYS_mount_setattr, folder, path, flags, all, len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// Removes what the guest has made in the container's root for itself.
pub fn tidy(spec: &Spec, bundle: &Path) {
    // Of the engine's root, whose name for it may be gone; and only if nothing is in it.
    if let Ok(root) = root(spec, bundle) {
        let _ = fs::remove_dir(root.join("tinyvmm"));
    }
}

//! `tinyvmm --root-dir`: the guest's root is a folder of the host, which the machine shares with the tag `root`; or, with
//! `--image`, its first disk.
//!
//! /tinyvmm/root in the initramfs says how: `overlay` puts memory above it, which takes what the guest writes, `write`
//! lets the guest write in its folders, `disk` is an overlay above the disk, and
//! `container` and a path make a folder within the share the root; all of the share is in /tinyvmm/shared then.
//! Drivers that the kernel has in modules are /tinyvmm/modules/0 and so on.

use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::{FileType, Mode, OFlags, RawDir, mkdirat, open, openat, readlinkat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::{finit_module, uname};

use crate::{say, wait};

/// What is mounted where: the folder of the host, memory, and the guest's root.
const LOWER: &CStr = c"/lower";
const UPPER: &CStr = c"/upper";
const DISK: &CStr = c"/dev/vda";
const ROOT: &CStr = c"/new";
/// All of a container's share.
const SHARED: &CStr = c"/tinyvmm/shared";
/// How often a share or a disk is looked for, every 10 ms: its driver may be starting.
const TRIES: u32 = 200;

/// The program that runs a command, or a shell.
pub const OWN_INIT: &CStr = c"/tinyvmm/init";

/// Enters the folder of the host, if there is to be one. Returns the program that is the guest's first then; without
/// such a folder `None`.
///
/// # Errors
///
/// What cannot be done, and why.
pub fn enter() -> Result<Option<&'static CStr>, (&'static str, Errno)> {
    let mut how = [0; 80];
    let Ok(file) = open(c"/tinyvmm/root", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    let init = wanted_init().unwrap_or(OWN_INIT);
    let len = rustix::io::read(&file, &mut how).map_err(|error| ("read /tinyvmm/root", error))?;
    let is = |word: &[u8]| how[..len].starts_with(word);
    let (writes, is_disk) = (is(b"write"), is(b"disk"));
    let container = how[..len].strip_prefix(b"container");
    load_modules();
    for folder in [LOWER, UPPER, ROOT] {
        make_folder(folder);
    }
    let flags = if writes { MountFlags::empty() } else { MountFlags::RDONLY };
    if let Some(folder) = container {
        make_folder(SHARED);
        mount_share(c"root", SHARED, MountFlags::empty())
            .and_then(|()| mount_bind_recursive(&*[SHARED.to_bytes(), folder].concat(), ROOT))
            .map_err(|error| ("mount the host's folder", error))?;
    } else if is_disk {
        mount_disk().map_err(|error| {
            ("mount the image's disk: has the kernel virtio-blk and EROFS, or --modules", error)
        })?;
        mount_overlay()
            .map_err(|error| ("mount an overlay: has the kernel overlayfs, or --modules", error))?;
    } else {
        mount_share(c"root", LOWER, flags).map_err(|error| ("mount the host's folder", error))?;
    }
    if !is_disk && container.is_none() && (writes || mount_overlay().is_err()) {
        gather().map_err(|error| ("gather the host's folders", error))?;
    }
    for folder in
        [c"/new/dev", c"/new/proc", c"/new/sys", c"/new/run", c"/new/tmp", c"/new/tinyvmm"]
    {
        make_folder(folder);
    }
    mount_bind_recursive(c"/tinyvmm", c"/new/tinyvmm").map_err(|error| ("keep /tinyvmm", error))?;
    if container.is_none() {
        mount_modules();
    }
    change_root().map_err(|error| ("change the root", error))?;
    Ok(Some(init))
}

pub fn make_folder(path: &CStr) {
    // It may be there.
    let _ = mkdirat(rustix::fs::CWD, path, Mode::from_raw_mode(0o755));
}

fn load_modules() {
    for index in 0.. {
        let path = format!("/tinyvmm/modules/{index}");
        let Ok(module) = open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
            return;
        };
        match finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                let number = error.raw_os_error();
                say(format!("tinyvmm-agent: a module of --modules: error {number}\n").as_bytes());
            }
        }
    }
}

fn mount_share(tag: &CStr, place: &CStr, flags: MountFlags) -> Result<(), Errno> {
    // While no share has this tag, EINVAL.
    patiently(Errno::INVAL, || mount(tag, place, c"virtiofs", flags, None))
}

fn mount_disk() -> Result<(), Errno> {
    make_folder(c"/dev");
    mount(c"devtmpfs", c"/dev", c"devtmpfs", MountFlags::empty(), None)?;
    patiently(Errno::NOENT, || mount(DISK, LOWER, c"erofs", MountFlags::RDONLY, None))
}

/// Does what fails with `not_yet` while a driver is starting.
fn patiently(not_yet: Errno, act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut tries = 0;
    loop {
        match act() {
            Err(error) if error == not_yet && tries < TRIES => wait(10),
            done => return done,
        }
        tries += 1;
    }
}

/// The folder with memory above it.
fn mount_overlay() -> Result<(), Errno> {
    mount(c"tmpfs", UPPER, c"tmpfs", MountFlags::empty(), None)?;
    make_folder(c"/upper/data");
    make_folder(c"/upper/work");
    let options = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
    mount(c"overlay", ROOT, c"overlay", MountFlags::empty(), Some(options))
}

/// The folder's own folders, files and links in one of memory: where the guest writes in them itself, and where the
/// kernel has no overlayfs.
fn gather() -> Result<(), Errno> {
    mount(c"tmpfs", ROOT, c"tmpfs", MountFlags::empty(), Some(c"mode=755"))?;
    let lower = open(LOWER, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let new = open(ROOT, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut room = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&lower, room.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let (name, text) = (entry.file_name(), entry.file_name().to_bytes());
        let place = |folder: &CStr| [folder.to_bytes(), b"/", text].concat();
        let (from, to) = (place(LOWER), place(ROOT));
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        // What is not possible here is missing there.
        let _ = match entry.file_type() {
            _ if [&b"."[..], b".."].contains(&text) => Ok(()),
            FileType::Directory => mkdirat(&new, name, Mode::from_raw_mode(0o755))
                .and_then(|()| mount_bind_recursive(&*from, &*to)),
            FileType::Symlink => readlinkat(&lower, name, Vec::new())
                .and_then(|target| symlinkat(&*target, &new, name)),
            _ => openat(&new, name, flags, Mode::from_raw_mode(0o644))
                .and_then(|_| mount_bind(&*from, &*to)),
        };
    }
    Ok(())
}

/// The share `modules`, if there is one, where modprobe(8) looks.
fn mount_modules() {
    let release = uname();
    let release = release.release().to_bytes();
    let place = [b"/new/lib/modules/", release, b"\0"].concat();
    let Ok(path) = CStr::from_bytes_with_nul(&place) else { return };
    if mount(c"modules", UPPER, c"virtiofs", MountFlags::RDONLY, None).is_ok() {
        make_folder(c"/new/lib/modules");
        make_folder(path);
        let _ = mount_bind(UPPER, path);
    }
}

/// As switch_root(8) does, but for what is in the initramfs: that is little.
fn change_root() -> Result<(), Errno> {
    chdir(ROOT)?;
    mount_move(c".", c"/")?;
    chroot(c".")?;
    chdir(c"/")
}

/// The program of `init=` on the kernel's command line.
fn wanted_init() -> Option<&'static CStr> {
    make_folder(c"/proc");
    let is_there = mount(c"proc", c"/proc", c"proc", MountFlags::empty(), None).is_ok();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut line = [0; 4096];
    let read = open(c"/proc/cmdline", flags, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut line));
    if is_there {
        let _ = rustix::mount::unmount(c"/proc", rustix::mount::UnmountFlags::DETACH);
    }
    let words = line[..read.ok()?].split(|byte| byte.is_ascii_whitespace());
    let path = words.filter_map(|word| word.strip_prefix(b"init=")).next_back()?;
    CStr::from_bytes_with_nul([path, &[0]].concat().leak()).ok()
}

//! A container's process while its machine runs: the first of a namespace of processes, so that the machine's all end with
//! it, in a namespace of mounts whose root is the container's. Engines join that to copy files, and must not find the host's
//! there. It passes signals on to the machine, and ends as the machine ends.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, chdir, kill_process, pivot_root, wait,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use vmm_sys_util::signal::register_signal_handler;

use crate::rootfs;
use crate::steps::{Way, way};

/// The machine's process, and a signal that has come before there was one.
static MACHINE: AtomicI32 = AtomicI32::new(0);
static EARLY: AtomicI32 = AtomicI32::new(0);

/// Those that are passed on, as `tinyvmm` does.
pub const SIGNALS: [Signal; 8] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::WINCH,
];

extern "C" fn pass_on(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    match (Pid::from_raw(MACHINE.load(Ordering::SeqCst)), Signal::from_named_raw(number)) {
        // kill(2), which a handler may call
        (Some(machine), Some(signal)) => _ = kill_process(machine, signal),
        _ => EARLY.store(number, Ordering::SeqCst),
    }
}

/// Has signals wait for the machine: the first process of a namespace gets none that it does not handle.
pub fn handle_signals() -> Result<()> {
    for signal in SIGNALS {
        register_signal_handler(signal.as_raw(), pass_on).context("cannot handle signals")?;
    }
    Ok(())
}

/// Starts the machine, and waits for its end; returns its exit code. `shared` is what rootfs.rs has made.
pub fn run(mut machine: Command, spec: &Spec, shared: &Path) -> Result<ExitCode> {
    let child = machine.spawn();
    let child =
        child.with_context(|| format!("cannot start {}", machine.get_program().display()))?;
    let pid = child.id() as i32;
    MACHINE.store(pid, Ordering::SeqCst);
    let early = EARLY.swap(0, Ordering::SeqCst);
    if early != 0 {
        pass_on(early, std::ptr::null_mut(), std::ptr::null_mut());
    }
    move_in(spec, shared)?;
    loop {
        // Also for processes that the machine's have left to us.
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended.as_raw_pid() == pid => {
                return Ok(ExitCode::from(code_of(status)));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the machine"),
        }
    }
}

/// A status as an exit code: that of a signal is 128 more.
fn code_of(status: WaitStatus) -> u8 {
    let by_signal = || status.terminating_signal().map(|signal| 128 + signal);
    let code = status.exit_status().or_else(by_signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

/// Makes the container's root ours, with what is mounted there.
fn move_in(spec: &Spec, shared: &Path) -> Result<()> {
    // SAFETY: this process has one thread, and no other shares its mounts by a call that it has made.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a namespace of mounts")?;
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart).context("cannot keep mounts apart")?;
    let mut binds = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let Way::Bind(_) = way(mount)? else { continue };
        let source = shared.join(binds.len().to_string());
        let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &source, copy | OpenTreeFlags::AT_RECURSIVE);
        binds.push((tree.context("cannot copy a mount")?, mount.destination(), source.is_dir()));
    }
    chdir(shared.join(rootfs::ROOT))?;
    pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the host's root")?;
    chdir("/")?;
    // Only from here on no path leads to the host's files. What is not possible is missing for engines, not for the guest.
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let _ = fs::create_dir("/proc");
    let _ = mount("proc", "/proc", "proc", harmless, None);
    for (tree, place, is_folder) in binds {
        let _ = make(place, is_folder);
        let _ = move_mount(tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    }
    Ok(())
}

/// Makes a folder or file where nothing is, and the folders that it is in.
fn make(place: &Path, is_folder: bool) -> std::io::Result<()> {
    if is_folder {
        return fs::create_dir_all(place);
    }
    place.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create_new(place).map(drop)
}

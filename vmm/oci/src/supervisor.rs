//! A container's process while its machine runs: the first of a namespace of processes, so that the machine's all end with
//! it, in a namespace of mounts whose root is the container's. Engines join that to copy files, and must not find the host's
//! there. It passes signals on to the machine, and ends as the machine ends.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, chdir, kill_process, pivot_root, wait,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use vmm_sys_util::signal::register_signal_handler;

use crate::rootfs;
use crate::steps::{Way, way};

/// The machine's process.
static MACHINE: AtomicI32 = AtomicI32::new(0);

/// Those that are passed on: whatever ends a process or means something to one, but for those that cannot be handled, and
/// those of the terminal's jobs.
const SIGNALS: [Signal; 9] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::WINCH,
    Signal::CONT,
];

extern "C" fn pass_on(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let machine = Pid::from_raw(MACHINE.load(Ordering::SeqCst));
    if let (Some(machine), Some(signal)) = (machine, Signal::from_named_raw(number)) {
        let _ = kill_process(machine, signal); // kill(2), which a handler may call
    }
}

/// Starts the machine, and waits for its end; returns its exit code. `shared` is what rootfs.rs has made.
pub fn run(mut machine: Command, spec: &Spec, shared: &Path) -> Result<ExitCode> {
    for signal in SIGNALS {
        register_signal_handler(signal.as_raw(), pass_on).context("cannot handle signals")?;
    }
    let child = machine.spawn();
    let child =
        child.with_context(|| format!("cannot start {}", machine.get_program().display()))?;
    let pid = child.id() as i32;
    MACHINE.store(pid, Ordering::SeqCst);
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
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |name: &str| openat(CWD, shared.join(name), flags, Mode::empty());
    let mut binds = Vec::<(OwnedFd, PathBuf, bool)>::new();
    for mount in spec.mounts().iter().flatten() {
        let Way::Bind(_) = way(mount)? else { continue };
        let name = binds.len().to_string();
        let is_folder = shared.join(&name).is_dir();
        binds.push((open(&name)?, mount.destination().clone(), is_folder));
    }
    // SAFETY: this process has one thread, and no other shares its mounts by a call that it has made.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a namespace of mounts")?;
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart).context("cannot keep mounts apart")?;
    chdir(shared.join(rootfs::ROOT))?;
    pivot_root(".", ".").context("cannot change the root")?;
    // From here on every absolute path is one of the container's. What is not possible is missing for engines, not for the
    // guest. The host's root is still there: what is bound has to be of mounts that are.
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let _ = fs::create_dir("/proc");
    if mount("proc", "/proc", "proc", harmless, None).is_ok() {
        for (fd, place, is_folder) in &binds {
            let _ = make(place, *is_folder);
            let _ = mount_bind_recursive(format!("/proc/self/fd/{}", fd.as_raw_fd()), place);
        }
    }
    unmount(".", UnmountFlags::DETACH).context("cannot leave the host's root")?;
    Ok(chdir("/")?)
}

/// Makes a folder or file where nothing is, and the folders that it is in.
fn make(place: &Path, is_folder: bool) -> std::io::Result<()> {
    if is_folder {
        return fs::create_dir_all(place);
    }
    place.parent().map_or(Ok(()), fs::create_dir_all)?;
    File::create_new(place).map(drop)
}

//! `--jail`: namespaces, another user and another root, for a process that root has started.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};
use rustix::process::{Gid, Uid};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, chdir, geteuid, kill_process,
    parent_process_death_signal, pivot_root, set_parent_process_death_signal, setrlimit, waitpid,
};
use rustix::thread::{
    LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use vmm_sys_util::signal::register_signal_handler;

use super::raw::{self, Inherited};
use crate::config::JailConfig;
use crate::{cli, inbox, logger};

/// Most files that the process can have open: three for each of 255 CPUs, those of the devices, and a thousand
/// connections of a vsock device.
const MAX_FILES: u64 = 2048;

/// Forks: the child continues in new namespaces, as their first process. The parent stays outside, passes signals on
/// and ends with the child's status.
pub(super) fn isolate(config: &JailConfig, inherited: &mut Inherited) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "only root can do that: leave it out, the rest of the jail needs no root"
    );
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match &config.netns {
        None => flags |= UnshareFlags::NEWNET,
        Some(name) => enter_network(name)?,
    }
    raw::unshare(flags).context("this host does not let namespaces be made")?;
    // Mounts in the new namespace do not propagate to the host.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("cannot make mounts private")?;
    hand_on_signals()?;
    let Some(child) = raw::fork().context("cannot start the process in the jail")? else {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        return Ok(());
    };
    inherited.close();
    CHILD.store(child.as_raw_nonzero().get(), Ordering::SeqCst);
    // A signal that came before there was a child.
    hand_on(PENDING.load(Ordering::SeqCst));
    become_user(config)?;
    wait_for(child)
}

fn enter_network(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    let namespace = File::open(&path).with_context(|| {
        format!("network namespace {}: make it with ip netns add {name}", path.display())
    })?;
    let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    entered.with_context(|| format!("cannot enter network namespace {}", path.display()))
}

/// Makes the folder the root, and becomes a user who cannot undo that.
pub(super) fn drop_privileges(config: &JailConfig) -> Result<()> {
    if let Some(folder) = &config.chroot {
        change_root(folder)
            .with_context(|| format!("cannot make {} the root", folder.display()))?;
    }
    let at_most = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::Nofile, at_most(MAX_FILES)).context("cannot limit open files")?;
    setrlimit(Resource::Memlock, at_most(0)).context("cannot limit locked memory")?;
    become_user(config)
}

/// Makes `folder` the root: read-only and without devices.
fn change_root(folder: &Path) -> Result<()> {
    mount_bind(folder, folder)?;
    chdir(folder)?;
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(".", flags, "")?;
    // The old root is stacked on the new one, from where it is unmounted (pivot_root(2)).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

/// Sets user and group ids, which drops all capabilities for good.
pub(super) fn become_user(config: &JailConfig) -> Result<()> {
    // A change of user clears the parent-death signal (prctl(2)).
    let on_death = parent_process_death_signal()?;
    let (user, group) = (Uid::from_raw(config.user), Gid::from_raw(config.group));
    set_thread_groups(&[]).context("cannot leave root's groups")?;
    set_thread_res_gid(group, group, group).context("cannot change the group")?;
    set_thread_res_uid(user, user, user).context("cannot change the user")?;
    Ok(set_parent_process_death_signal(on_death)?)
}

/// The process in the jail, and a signal that came before it was started.
static CHILD: AtomicI32 = AtomicI32::new(0);
static PENDING: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    PENDING.store(signal, Ordering::SeqCst);
    hand_on(signal);
}

/// Passes `signal` on. kill(2) may be called by a handler.
fn hand_on(signal: i32) {
    let child = Pid::from_raw(CHILD.load(Ordering::SeqCst));
    if let (Some(child), Some(signal)) = (child, Signal::from_named_raw(signal)) {
        let _ = kill_process(child, signal);
    }
}

fn hand_on_signals() -> Result<()> {
    for signal in inbox::stop_signals() {
        register_signal_handler(signal, on_signal).context("cannot handle signals")?;
    }
    Ok(())
}

/// Ends this process with the status of `child`.
fn wait_for(child: Pid) -> ! {
    let status = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                logger::print_message(format_args!(
                    "cannot wait for the process in the jail: {error}"
                ));
                std::process::exit(cli::EXIT_INTERNAL.into());
            }
        }
    };
    if let Some(signal) = status.terminating_signal() {
        logger::print_message(format_args!("the process in the jail was ended by signal {signal}"));
    }
    std::process::exit(status.exit_status().unwrap_or(cli::EXIT_INTERNAL.into()))
}

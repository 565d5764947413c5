//! The system calls of the jail that have no safe form in Rust.

use std::os::fd::RawFd;
use std::{fs, io};

use rustix::process::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Descriptors, other than 0 to 2, that the parent process has left open.
#[derive(Default)]
pub(super) struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Finds all of them. Where /proc is not mounted, closes them at once and returns none. To be called before
    /// anything is opened.
    pub(super) fn find() -> io::Result<Self> {
        // A program that is started before they are closed, as passt is, does not get them. Fails before Linux 5.11.
        // SAFETY: the call changes a flag of descriptors, and no memory (close_range(2)).
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        let Ok(entries) = fs::read_dir("/proc/self/fd") else {
            // SAFETY: nothing in this process owns a descriptor yet.
            let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
            return if done == 0 { Ok(Self::default()) } else { Err(io::Error::last_os_error()) };
        };
        let numbers =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut all: Vec<RawFd> = numbers.filter(|fd| *fd > 2).collect();
        // The folder's own descriptor is closed by now.
        all.retain(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
        Ok(Self(all))
    }

    /// Closes the descriptors.
    pub(super) fn close(&mut self) {
        for fd in self.0.drain(..) {
            // SAFETY: the descriptor was open before this process opened anything, so nothing here owns it; it is
            // closed once.
            unsafe { libc::close(fd) };
        }
    }
}

/// Moves this process into new namespaces, those that `flags` names.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the flags do not unshare descriptors.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Forks. Returns the child's id in the parent, `None` in the child. To be called while the process has one thread.
///
/// # Errors
///
/// The user or the host has too many processes.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: there is no other thread that could hold a lock or be in the middle of a change.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Whether the kernel has seccomp filters that can trap.
pub(super) fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads the number behind the pointer, and changes nothing (seccomp(2)).
    unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0u32, &raw const action)
            == 0
    }
}

/// Adds a seccomp filter to this thread's, for good. The thread gains no privileges any more.
pub(super) fn add_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` steps from a slice that has as many, and changes no memory (seccomp(2)).
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const program)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// This thread's name, padded with zeroes. May be called in a signal handler: allocates nothing.
pub(super) fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// Ends the process at once. May be called in a signal handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does nothing but end the process.
    unsafe { libc::_exit(code) }
}

/// The number of the system call that `info` of a SIGSYS reports; -1 if a filter did not raise it.
pub(super) fn forbidden_call(info: *mut libc::siginfo_t) -> i32 {
    /// The start of `siginfo_t` for SIGSYS on x86-64 (include/uapi/asm-generic/siginfo.h).
    #[repr(C)]
    struct SigSys {
        signo: i32,
        errno: i32,
        code: i32,
        address: u64,
        call: i32,
    }
    if info.is_null() {
        return -1;
    }
    // SAFETY: the kernel passes a whole siginfo_t to its handlers, which is larger, and aligned alike.
    let info = unsafe { info.cast::<SigSys>().read() };
    /// SYS_SECCOMP
    const BY_FILTER: i32 = 1;
    if info.signo == libc::SIGSYS && info.code == BY_FILTER { info.call } else { -1 }
}

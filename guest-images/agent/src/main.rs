//! The agent in a guest: it runs commands for `tinyvmm exec`, `shell` and `cp`, and gives a clone its identity. The
//! protocol is that of the crate `agent-wire`.
//!
//! Without arguments it listens on its vsock port; each connection is served by a process of its own, so that none
//! disturbs another. `--connection` serves the one that is its standard input. `--command` connects to the host, serves that
//! connection, and prints the exit code of the command that the host has sent; exit status 1: nobody can be connected to. A
//! connection that is lost without a request is made again.
//! `--contained` becomes a container's program (container.rs).
//! As a guest's first process, the file that `rdinit=` names, it enters what is to be the guest's root, if that is a folder
//! of the host or an image, starts itself in the background and becomes /init; of an image it runs the program.
//!
//! It is static and has no C library, so that it runs in any guest and costs next to nothing.

#![no_std]
#![no_main]

extern crate alloc;

mod container;
mod identity;
mod image;
mod network;
mod program;
mod root;
mod session;
mod sys;
mod user;

use alloc::format;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Access, Mode, access, mkdir};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, accept_with, listen, recv, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, chdir, getpid, pidfd_open, setsid};
use rustix::thread::{
    NanosleepRelativeResult, ThreadNameSpaceType, Timespec, move_into_thread_name_spaces, nanosleep,
};

use session::Served;
use sys::Words;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Pauses between tries to listen: a guest may load the driver late. In milliseconds.
const FIRST_PAUSE: u32 = 10;
const LONGEST_PAUSE: u32 = 1000;
/// How often the host is looked for again, and what an init mounts.
const TRIES: u32 = 100;
/// What is there once a guest's init has mounted what programs expect.
const MOUNTED: [&CStr; 3] = [c"/proc/self", c"/sys/kernel", c"/dev/null"];

/// What may be a guest's init, in the order of kernel_init (init/main.c).
const INITS: [&CStr; 5] = [c"/init", c"/sbin/init", c"/etc/init", c"/bin/init", c"/bin/sh"];

fn main(args: Words, env: Words) -> i32 {
    sys::set_signal(Signal::PIPE.as_raw(), true);
    if args.get(0).is_some() && args.get(1).is_some_and(|arg| arg == c"--connection") {
        sys::set_signal(Signal::CHILD.as_raw(), false);
        // Not 0, 1 or 2, which are a program's.
        let Ok(socket) = fcntl_dupfd_cloexec(sys::standard(0), 3) else { return 1 };
        session::serve(&socket);
        return 0;
    }
    if args.get(0).is_some() && args.get(1).is_some_and(|arg| arg == c"--command") {
        let Some(code) = serve_command() else { return 1 };
        let _ = rustix::io::write(sys::standard(1), format!("{code}\n").as_bytes());
        return 0;
    }
    if args.get(0).is_some() && args.get(1).is_some_and(|arg| arg == c"--contained") {
        return container::become_program(args, 2);
    }
    if getpid() == Pid::INIT {
        let own = match root::enter() {
            Ok(own) => own,
            Err((what, error)) => {
                let number = error.raw_os_error();
                say(format!("tinyvmm-agent: cannot {what}: error {number}\n").as_bytes());
                return 1;
            }
        };
        let is_image = own == Some(root::OWN_INIT) && image::is_there();
        if is_image && !(image::is_named() && matches!(sys::fork(), Ok(None))) {
            return image::run();
        }
        // tinyvmm's own init starts an agent where one is needed.
        let starts_one = own != Some(root::OWN_INIT);
        if !(is_image || starts_one && matches!(sys::fork(), Ok(None))) {
            for init in own.as_ref().map_or(&INITS[..], core::slice::from_ref) {
                sys::execute_in_place(init, args, env);
            }
            say(b"tinyvmm-agent: there is no init: say --cmdline rdinit=PROGRAM\n");
            return 1;
        }
    }
    // So that systemd does not end it with an initramfs (systemd, ROOT_STORAGE_DAEMONS).
    sys::mark_name(args, b'@');
    let _ = setsid();
    // Children need not be waited for.
    sys::set_signal(Signal::CHILD.as_raw(), true);
    await_init();
    match open() {
        Ok(listener) => accept_all(&listener),
        // Another one listens already.
        Err(_) => 1,
    }
}

/// Exit code of a command of which none is known, as docker's.
const NO_STATUS: u8 = 125;

/// Serves a connection to the host. Returns the exit code of the command that the host has sent, or `None` if nobody can
/// be connected to.
fn serve_command() -> Option<u8> {
    let mut socket = connect().ok()?;
    let mut served = session::serve(&socket);
    // A guest that is made of another one's snapshot has lost the connection, and has to find its own host.
    for _ in 0..TRIES {
        if served != Served::Nothing {
            break;
        }
        match connect() {
            Ok(own) => {
                served = session::serve(&own);
                socket = own;
            }
            Err(_) => wait(FIRST_PAUSE),
        }
    }
    let code = if let Served::Code(code) = served { code } else { NO_STATUS };
    // The host closes the connection when all is printed.
    while matches!(recv(&socket, &mut [0; 64], RecvFlags::empty()), Ok((1.., _)) | Err(Errno::INTR))
    {
    }
    Some(code)
}

/// Connects to the host.
fn connect() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sys::connect_host(&socket).map(|()| socket)
}

/// Makes a folder and those that it is in.
fn make_folders(path: &[u8]) {
    for (at, _) in path.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'/') {
        let _ = mkdir(&path[..at], Mode::from_raw_mode(0o755));
    }
    let _ = mkdir(path, Mode::from_raw_mode(0o755));
}

fn say(text: &[u8]) {
    let _ = rustix::io::write(sys::standard(2), text);
}

/// Waits until the guest's init has mounted what programs expect; a second at most, for an init may mount nothing.
fn await_init() {
    for _ in 0..TRIES {
        if MOUNTED.iter().all(|path| access(*path, Access::EXISTS).is_ok()) {
            return;
        }
        wait(FIRST_PAUSE);
    }
}

/// Listens, as soon as the guest can.
fn open() -> Result<OwnedFd, Errno> {
    let mut pause = FIRST_PAUSE;
    loop {
        match socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
            Err(Errno::AFNOSUPPORT) => wait(pause),
            socket => {
                let socket = socket?;
                sys::bind_port(&socket)?;
                listen(&socket, BACKLOG)?;
                return Ok(socket);
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn wait(ms: u32) {
    let mut left =
        Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 };
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
}

fn accept_all(listener: &OwnedFd) -> i32 {
    loop {
        // accept(2) alone would do, but for kernels that report a connection which is gone again.
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], None);
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else {
            wait(FIRST_PAUSE);
            continue;
        };
        // Not from a program of the guest's, by the loopback driver: the agent is root.
        if !sys::is_from_host(&socket) {
            continue;
        }
        match sys::fork() {
            Ok(None) => {
                sys::set_signal(Signal::CHILD.as_raw(), false);
                enter_root();
                session::serve(&socket);
                return 0;
            }
            Ok(Some(_)) => {}
            // The connection is closed.
            Err(_) => wait(FIRST_PAUSE),
        }
    }
}

/// Enters the root folder that the guest's first process has by now: the agent may have been started in an initramfs.
/// Joining a mount namespace, also one's own, leads to what is mounted on top there (mntns_install, fs/namespace.c).
fn enter_root() {
    if let Ok(init) = pidfd_open(Pid::INIT, PidfdFlags::empty()) {
        // Fails before Linux 5.8.
        let _ = move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT);
    }
    let _ = chdir("/");
}

//! The first process of a guest whose root is a container's image: it runs the program that the image is for, which
//! /tinyvmm/exec names, and then ends the guest with its exit status. The image need have nothing else, no shell either.

use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use agent_wire::Exec;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, access, open, symlink, sync};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::stdio::dup2_stdin;
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Winsize, tcdrain, tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::program::Program;
use crate::root::make_folder;
use crate::sys::{self, Texts};
use crate::{NO_STATUS, make_folders, say, serve_command};

/// What is run: the payload of a request.
const EXEC: &CStr = c"/tinyvmm/exec";
/// The program that reports to tinyvmm, and what it reports (guest-images/tell.s).
const TELL: &CStr = c"/tinyvmm/tell";
const INIT_RUNS: u8 = 1;
const INPUT_MAY_COME: u8 = 2;
/// SIOCSIFFLAGS (include/uapi/linux/sockios.h), and a struct ifreq with IFF_UP of the loopback interface.
const SIOCSIFFLAGS: u32 = 0x8914;
const UP: u8 = 1;

/// Whether the guest's root is an image.
pub fn is_there() -> bool {
    has(EXEC)
}

/// Whether people find the machine by its name, and the agent then.
pub fn is_named() -> bool {
    has(c"/tinyvmm/named")
}

fn has(path: &CStr) -> bool {
    access(path, rustix::fs::Access::EXISTS).is_ok()
}

/// Runs the program to its end, and ends the guest. Returns only if that cannot be.
pub fn run() -> i32 {
    mount_all();
    report(INIT_RUNS, false);
    let request = Exec::decode(&contents(EXEC));
    let status = match request {
        Some(mut request) => {
            make_folders(request.folder.as_deref().unwrap_or_default());
            by_agent().unwrap_or_else(|| on_console(&mut request))
        }
        None => {
            say(b"tinyvmm-agent: /tinyvmm/exec is not what it should be\n");
            NO_STATUS
        }
    };
    sync();
    report(status, true);
    say(b"tinyvmm-agent: the kernel lacks ioperm(2), so the exit status is not known\n");
    let _ = reboot(RebootCommand::PowerOff);
    1
}

/// What programs expect to be there (OCI runtime specification, "Default Filesystems", and what engines add).
fn mount_all() {
    let none = MountFlags::empty();
    let mounts = [
        (c"proc", c"/proc", c"proc", None),
        (c"sysfs", c"/sys", c"sysfs", None),
        (c"devtmpfs", c"/dev", c"devtmpfs", None),
        (c"devpts", c"/dev/pts", c"devpts", Some(c"ptmxmode=0666,mode=0620,gid=5")),
        (c"tmpfs", c"/dev/shm", c"tmpfs", Some(c"mode=1777")),
    ];
    for (source, place, kind, options) in mounts {
        make_folder(place);
        let _ = mount(source, place, kind, none, options);
    }
    for (target, place) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = symlink(target, place);
    }
    // Engines write these; many images have none, or an empty one.
    make_folder(c"/etc");
    if contents(c"/etc/hosts").is_empty() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        if let Ok(file) = open(c"/etc/hosts", flags, Mode::from_raw_mode(0o644)) {
            let _ = rustix::io::write(&file, b"127.0.0.1\tlocalhost\n::1\tlocalhost\n");
        }
    }
    if let Ok(socket) =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
    {
        let mut request = [0u8; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = UP;
        let _ = sys::control(socket.as_fd(), SIOCSIFFLAGS, &request);
    }
}

/// A small file; nothing if it is not there.
fn contents(path: &CStr) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(file) = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return bytes;
    };
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = rustix::io::read(&file, &mut piece) {
        bytes.extend(&piece[..len]);
    }
    bytes
}

/// Writes `byte` to one of tinyvmm's ports: a mark, or the status that ends the machine.
fn report(byte: u8, is_status: bool) {
    let tell = || -> Result<(), Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::write(&write, &[byte])?;
        let words: &[&[u8]] = if is_status { &[b"tell", b"status"] } else { &[b"tell"] };
        let Some(pid) = sys::fork()? else {
            let _ = dup2_stdin(&read);
            let none = Texts::new(core::iter::empty());
            sys::execute(TELL, &Texts::new(words.iter().copied()), &none);
            sys::exit(1)
        };
        wait_for(pid);
        Ok(())
    };
    let _ = tell();
}

/// Waits for the end of the process `pid`, and for that of processes that nobody else waits for.
fn wait_for(pid: Pid) -> Option<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => return Some(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The program's exit code, if the host can be connected to, which has its streams then. In a process of its own, for the
/// first one has others to wait for.
fn by_agent() -> Option<u8> {
    if !has(c"/tinyvmm/by-agent") {
        return None;
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    let Some(pid) = sys::fork().ok()? else {
        if let Some(code) = serve_command() {
            let _ = rustix::io::write(&write, &[code]);
        }
        sys::exit(0)
    };
    drop(write);
    wait_for(pid);
    let mut code = [0];
    matches!(rustix::io::read(&read, &mut code), Ok(1)).then_some(code[0])
}

/// Runs the program on the guest's console; returns its exit code.
fn on_console(request: &mut Exec) -> u8 {
    report(INPUT_MAY_COME, false);
    let console = match open(c"/dev/console", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(console) => console,
        Err(_) => return NO_STATUS,
    };
    set_up(&console);
    if has(c"/tinyvmm/terminal") {
        let kind = contents(c"/tinyvmm/term");
        let kind = if kind.is_empty() { b"linux" } else { &kind[..] };
        request.env.insert(0, [b"TERM=", kind].concat());
        request.terminal = Some((0, 0));
    }
    let code = match Program::start_on(request, &console) {
        Ok(program) => wait_for(program.pid).map_or(NO_STATUS, code_of),
        Err((code, why)) => {
            say(format!("tinyvmm-agent: {why}\n").as_bytes());
            code
        }
    };
    let _ = tcdrain(&console);
    code
}

/// A status as an exit code: that of a signal is 128 more.
fn code_of(status: WaitStatus) -> u8 {
    match status.terminating_signal() {
        Some(signal) => (signal as u8).wrapping_add(128),
        None => status.exit_status().unwrap_or(0) as u8,
    }
}

/// Gives the console the modes and the size that /tinyvmm/stty has, in words of stty(1).
fn set_up(console: &OwnedFd) {
    let Ok(mut modes) = tcgetattr(console) else { return };
    let text = contents(c"/tinyvmm/stty");
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    let mut words = text.split(|byte| *byte == b' ');
    while let Some(word) = words.next() {
        let mut number = || {
            let digits = core::str::from_utf8(words.next()?).ok()?;
            digits.trim().parse::<u16>().ok()
        };
        match word {
            b"echo" | b"-echo" => modes.local_modes.set(LocalModes::ECHO, word == b"echo"),
            b"opost" | b"-opost" => modes.output_modes.set(OutputModes::OPOST, word == b"opost"),
            b"rows" => size.ws_row = number().unwrap_or(0),
            b"cols" => size.ws_col = number().unwrap_or(0),
            _ => {}
        }
    }
    let _ = tcsetattr(console, OptionalActions::Now, &modes);
    let _ = tcsetwinsize(console, size);
}

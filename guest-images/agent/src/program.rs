//! A program with pipes or a terminal, in a session of its own.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;

use agent_wire::Exec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, fchown, mkdir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Gid, Pid, Signal, Uid, WaitOptions, chdir, ioctl_tiocsctty, kill_process_group, setsid, umask,
    waitpid,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::sys::{self, Texts};
use crate::user::User;

pub const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program does not run: an exit code as docker's, and a text.
pub type Failure = (u8, String);

/// A program that runs, and this side of its pipes. Those of one that has a terminal are one descriptor.
pub struct Program {
    pub pid: Pid,
    /// Its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
    pub errors: Option<OwnedFd>,
}

/// One that has not started, without streams.
const NONE: Program =
    Program { pid: Pid::INIT, terminal: None, input: None, output: None, errors: None };

/// The program's side.
struct Ends {
    input: OwnedFd,
    output: OwnedFd,
    errors: OwnedFd,
}

/// What the new process does before it becomes the program, and which of it has failed.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Prepare,
    Folder,
    Execute,
}

impl Program {
    /// Starts what `request` asks for.
    pub fn start(request: &Exec) -> Result<Self, Failure> {
        let (program, ends) = connect(request).map_err(no_streams)?;
        program.launch(request, ends)
    }

    /// Starts it on `console`, which is the program's terminal if it is to have one.
    pub fn start_on(request: &Exec, console: &OwnedFd) -> Result<Self, Failure> {
        let copy = || rustix::io::fcntl_dupfd_cloexec(console, 3).map_err(no_streams);
        let ends = Ends { input: copy()?, output: copy()?, errors: copy()? };
        NONE.launch(request, ends)
    }

    fn launch(mut self, request: &Exec, ends: Ends) -> Result<Self, Failure> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = request.user.as_deref();
        let user = User::find(name).ok_or_else(|| {
            (126, format!("the guest has no user or group {}", text(name.unwrap_or(b"0"))))
        })?;
        let (news, report) = pipe_with(PipeFlags::CLOEXEC).map_err(no_streams)?;
        let Some(pid) = sys::fork().map_err(no_streams)? else {
            let Err((step, error)) = become_program(request, &user, &ends);
            let error = error.raw_os_error() as u32;
            let _ = rustix::io::write(&report, &[&[step as u8][..], &error.to_le_bytes()].concat());
            sys::exit(127)
        };
        drop((report, ends));
        self.pid = pid;
        let mut failed = [0; 5];
        let Ok(5) = rustix::io::read(&news, &mut failed) else { return Ok(self) };
        let _ = waitpid(Some(pid), WaitOptions::empty());
        let [step, error @ ..] = failed;
        let error = Errno::from_raw_os_error(u32::from_le_bytes(error) as i32);
        let program = request.args.first().unwrap_or(&user.shell);
        let folder = request.folder.as_deref().unwrap_or(b"/");
        Err(match step {
            0 => (126, format!("cannot become the user: {}", said(error))),
            1 => (126, format!("folder {}: {}", text(folder), said(error))),
            _ if error == Errno::NOENT => (127, format!("{}: {}", text(program), said(error))),
            _ => (126, format!("{}: {}", text(program), said(error))),
        })
    }

    /// Sends a signal to all processes of the program's group.
    pub fn signal(&self, number: u8) {
        let Some(signal) = Signal::from_named_raw(i32::from(number)) else { return };
        let _ = kill_process_group(self.pid, signal);
    }
}

fn no_streams(error: Errno) -> Failure {
    (126, format!("cannot make pipes or a terminal: {}", said(error)))
}

pub fn said(error: Errno) -> String {
    match error {
        Errno::NOENT => "it is not there".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::NOTDIR => "it is no folder".to_owned(),
        Errno::NOEXEC => "it is no program".to_owned(),
        error => format!("error {}", error.raw_os_error()),
    }
}

/// Makes the pipes or the terminal.
fn connect(request: &Exec) -> Result<(Program, Ends), Errno> {
    if let Some((ws_row, ws_col)) = request.terminal {
        let user = open_terminal()?;
        unlockpt(&user)?;
        tcsetwinsize(&user, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
        let line = ioctl_tiocgptpeer(
            &user,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let ends = Ends { input: copy(&line)?, output: copy(&line)?, errors: line };
        let (input, output) = (copy(&user)?, copy(&user)?);
        return Ok((
            Program { terminal: Some(user), input: Some(input), output: Some(output), ..NONE },
            ends,
        ));
    }
    let make = || pipe_with(PipeFlags::CLOEXEC);
    let ((read_in, input), (output, write_out), (errors, write_errors)) =
        (make()?, make()?, make()?);
    let ends = Ends { input: read_in, output: write_out, errors: write_errors };
    Ok((Program { input: Some(input), output: Some(output), errors: Some(errors), ..NONE }, ends))
}

/// Opens a new terminal. A small initramfs has not mounted where they are.
fn open_terminal() -> Result<OwnedFd, Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    openpt(flags).or_else(|_| {
        let _ = mkdir("/dev/pts", Mode::from_raw_mode(0o755));
        let options = c"ptmxmode=0666,mode=0620,gid=5";
        mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?;
        openpt(flags)
    })
}

/// Becomes the program; returns only if that fails.
fn become_program(request: &Exec, user: &User, ends: &Ends) -> Result<Infallible, (Step, Errno)> {
    let prepare = || -> Result<(), Errno> {
        setsid()?;
        dup2_stdin(&ends.input)?;
        dup2_stdout(&ends.output)?;
        dup2_stderr(&ends.errors)?;
        if request.terminal.is_some() {
            ioctl_tiocsctty(&ends.errors)?;
            fchown(&ends.errors, Some(Uid::from_raw(user.uid)), None)?;
        }
        sys::set_signal(Signal::PIPE.as_raw(), false);
        umask(Mode::from_raw_mode(0o022));
        let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        // Who is not root, as in tests, cannot become another.
        if rustix::process::geteuid().is_root() {
            set_thread_groups(&groups)?;
            set_thread_gid(Gid::from_raw(user.gid))?;
            set_thread_uid(Uid::from_raw(user.uid))?;
        } else if user.uid != rustix::process::geteuid().as_raw() {
            return Err(Errno::PERM);
        }
        Ok(())
    };
    prepare().map_err(|error| (Step::Prepare, error))?;
    match &request.folder {
        Some(folder) => chdir(folder.as_slice()).map_err(|error| (Step::Folder, error))?,
        None => _ = chdir(user.home.as_slice()).or_else(|_| chdir("/")),
    }
    Err((Step::Execute, run(request, user)))
}

/// Looks for the program in PATH, and becomes it; returns why not.
fn run(request: &Exec, user: &User) -> Errno {
    let own = [(&b"PATH"[..], PATH), (b"HOME", &user.home), (b"USER", &user.name)];
    let own = own.map(|(name, value)| [name, b"=", value].concat());
    let name = |text: &[u8]| text.split(|byte| *byte == b'=').next().map(<[u8]>::len);
    let is_given = |own: &&Vec<u8>| {
        !request.env.iter().any(|given| {
            name(given) == name(own) && given.starts_with(&own[..name(own).unwrap_or(0)])
        })
    };
    let all: Vec<&[u8]> =
        own.iter().filter(is_given).chain(&request.env).map(Vec::as_slice).collect();
    let env = Texts::new(all.iter().copied());
    let shell = [user.shell.clone()];
    let words = if request.args.is_empty() { &shell[..] } else { &request.args };
    let args = Texts::new(words.iter().map(Vec::as_slice));
    let path = all.iter().rev().find_map(|text| text.strip_prefix(b"PATH="));
    find_and_execute(words.first().map_or(b"", Vec::as_slice), path.unwrap_or(PATH), &args, &env)
}

/// Looks for `program` in the folders of `path`, unless it says where it is, and becomes it; returns why not.
pub fn find_and_execute(program: &[u8], path: &[u8], args: &Texts, env: &Texts) -> Errno {
    if program.is_empty() {
        return Errno::NOENT;
    }
    let execute = |path: &[u8]| match CString::new(path) {
        Ok(path) => sys::execute(&path, args, env),
        Err(_) => Errno::INVAL,
    };
    if program.contains(&b'/') {
        return execute(program);
    }
    let mut why = Errno::NOENT;
    for folder in path.split(|byte| *byte == b':') {
        let error = execute(&[folder, b"/", program].concat());
        if ![Errno::NOENT, Errno::NOTDIR].contains(&error) {
            why = error;
        }
    }
    why
}

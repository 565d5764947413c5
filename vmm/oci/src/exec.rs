//! `exec`: another process in a container, by the agent in its guest.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use oci_spec::runtime::{Process, Spec, User};
use rustix::process::{ioctl_tiocsctty, setsid};

use crate::container::{self, Container};
use crate::{commands, console, steps};

/// The flags of `exec`.
#[derive(Args, Debug)]
pub struct Options {
    /// File that describes the process, as config.json does
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,

    /// Leave it to whoever started us, and do not wait for its end
    #[arg(long, short)]
    detach: bool,

    /// File for the number of the process that has its streams
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Socket that gets the process's terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,

    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,

    /// Add to the container's environment
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,

    /// Run as this user
    #[arg(long, short, value_name = "UID[:GID]", value_parser = user)]
    user: Option<(u32, u32)>,

    /// Run in this folder
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,

    /// Accepted, for engines say it: keys are the guest's
    #[arg(long)]
    no_new_privs: bool,

    /// Descriptors to pass on besides the standard ones: a guest can have none
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,

    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,

    /// The command and its arguments, if --process does not say it
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err("say UID or UID:GID, as numbers".into()),
    }
}

impl Options {
    /// What is to run: as --process says, or as the container's own process but for the flags.
    fn wanted(&self, spec: &Spec) -> Result<Process> {
        if let Some(path) = &self.process {
            let text = fs::read(path).with_context(|| format!("--process {}", path.display()))?;
            let process = serde_json::from_slice(&text);
            return process.with_context(|| format!("--process {}", path.display()));
        }
        let mut process = spec.process().clone().context("config.json: no process")?;
        process.set_args(Some(self.command.clone())).set_terminal(Some(self.tty));
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        if let Some((uid, gid)) = self.user {
            let mut user = User::default();
            user.set_uid(uid).set_gid(gid);
            process.set_user(user);
        }
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        Ok(process)
    }
}

/// Runs a process; its exit code is ours, unless it is detached.
pub fn exec(root: &Path, options: &Options) -> Result<ExitCode> {
    ensure!(options.preserve_fds == 0, "--preserve-fds: a guest has no descriptors of the host");
    let container = Container::find(root, &options.id)?;
    container.ensure_runs()?;
    commands::await_machine(&container)?;
    let process = options.wanted(&container.spec()?)?;
    let is_terminal = process.terminal() == Some(true) || options.tty;
    let mut command = commands::tinyvmm(&container);
    command.args(["exec", "--interactive"]).args(is_terminal.then_some("--tty"));
    command.arg(container.machine()).arg("--");
    command.args(steps::command(steps::of_further_process(&process)?, &process)?);
    if let Some(socket) = options.console_socket.as_deref().filter(|_| is_terminal) {
        let terminal = console::open(&process, socket)?;
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?);
        command.stderr(Stdio::from(terminal));
        take_terminal(&mut command);
    }
    let mut child = command.spawn().context("cannot start tinyvmm")?;
    if let Some(path) = &options.pid_file {
        fs::write(path, child.id().to_string()).with_context(|| path.display().to_string())?;
    }
    if options.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(255)))
}

/// Has the process be the first of a session, whose terminal is its standard input.
fn take_terminal(command: &mut Command) {
    let take = || {
        setsid()?;
        // SAFETY: standard input was opened for the new process before.
        let input = unsafe { std::os::fd::BorrowedFd::borrow_raw(0) };
        Ok(ioctl_tiocsctty(input)?)
    };
    // SAFETY: the function makes system calls only.
    unsafe { command.pre_exec(take) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_or_two_numbers() {
        assert_eq!((user("5"), user("5:6")), (Ok((5, 0)), Ok((5, 6))));
        for text in ["", "a", "5:", "5:6:7", "-1"] {
            assert!(user(text).is_err(), "{text}");
        }
    }
}

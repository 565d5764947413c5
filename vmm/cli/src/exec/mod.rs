//! What people do inside a machine, with the agent in its guest: `tinyvmm exec`, `shell` and `cp` in one that has a name, and
//! the command that one was started with.

mod agent;
mod command;
mod copy;
mod input;
mod remote;
mod session;
mod signals;

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;

use agent_wire::{Exec, Kind};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::termios::tcgetwinsize;

pub use self::agent::Connection;
pub use self::command::GuestCommand;
pub use self::copy::{CpOptions, cp};
use self::input::Input;
use self::session::{End, Session};
use self::signals::Signals;
use crate::config::machine_name;
use crate::logger;
use crate::terminal::Raw;

/// Exit code when the command has no status: no machine, no agent, or the connection is lost. As docker's.
const EXIT_NO_STATUS: u8 = 125;
/// Why a command's end is not known.
const LOST: &str = "the connection to the guest is lost";

/// The flags of `tinyvmm exec`.
#[derive(Args, Debug)]
pub struct ExecOptions {
    /// Pass standard input on, to its end
    #[arg(long, short)]
    interactive: bool,

    /// Give the command a terminal; its keys and size are this one's
    #[arg(long, short)]
    tty: bool,

    /// Set an environment variable; without a value it is this process's
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Run as this user of the guest, a name or a number. Without it: root
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Run in this folder of the guest. Without it: the user's home
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,

    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,

    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// The flags of `tinyvmm shell`.
#[derive(Args, Debug)]
pub struct ShellOptions {
    /// The user whose shell it is, a name or a number. Without it: root
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// The machine's name
    #[arg(value_name = "MACHINE", value_parser = machine_name)]
    machine: String,
}

/// Runs a command in a guest; its exit status is the exit code.
pub fn exec(options: &ExecOptions) -> ExitCode {
    let request = Exec {
        args: options.command.iter().map(|word| word.clone().into()).collect(),
        env: options.env.iter().filter_map(|text| variable(text)).map(Into::into).collect(),
        folder: options.workdir.clone().map(Into::into),
        user: options.user.clone().map(Into::into),
        terminal: None,
    };
    ended(run(&options.machine, request, options.interactive, options.tty))
}

/// Runs a user's shell on this terminal.
pub fn shell(options: &ShellOptions) -> ExitCode {
    let user = options.user.clone().map(Into::into);
    let is_terminal = stdin().is_terminal();
    ended(run(&options.machine, Exec { user, ..Exec::default() }, true, is_terminal))
}

fn ended(code: Result<u8>) -> ExitCode {
    ExitCode::from(code.unwrap_or_else(|error| {
        logger::print_message(format_args!("{error:#}"));
        EXIT_NO_STATUS
    }))
}

/// `NAME=VALUE`, with this process's value if `text` has none; `None` if there is none here either.
fn variable(text: &str) -> Option<String> {
    if text.contains('=') {
        return Some(text.to_owned());
    }
    std::env::var(text).ok().map(|value| format!("{text}={value}"))
}

fn run(machine: &str, mut request: Exec, with_input: bool, with_terminal: bool) -> Result<u8> {
    if with_terminal {
        ensure!(
            !with_input || stdin().is_terminal(),
            "-t: standard input is no terminal, leave -t out"
        );
        request.terminal = Some(terminal_size());
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
        request.env.insert(0, format!("TERM={term}").into());
    }
    let zero = [&request.args, &request.env].into_iter().flatten().any(|text| text.contains(&0));
    ensure!(!zero, "{machine}: the command contains a zero byte");
    let payload = request.encode().with_context(|| {
        format!("{machine}: the command and its environment are longer than 128 KiB, copy a file")
    })?;
    let connection = Connection::open(machine, Kind::Exec, &payload)?;
    let signals = Signals::new(with_terminal)?;
    let raw = (with_input && with_terminal).then(Raw::enter).transpose();
    let _raw = raw.context("cannot set up the terminal")?;
    let end = Session::new(connection, signals, Input::new(with_input, None)?).run(None);
    match end.with_context(|| machine.to_owned())? {
        End::Status(code) | End::GivenUp(code) => Ok(code),
        End::Lost => bail!("{machine}: {LOST}"),
    }
}

/// Rows and columns of this process's terminal, or what is usual if it has none that are known.
fn terminal_size() -> (u16, u16) {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

//! `tinyvmm-oci`: an OCI runtime whose containers are virtual machines. Engines call it as they call runc: Podman's conmon,
//! containerd's shim of runc, Docker. It writes a machine and starts `tinyvmm`, whose agent runs the container's process in
//! the guest. What of config.json is honoured is in docs/oci.md.

mod cgroup;
mod commands;
mod console;
mod container;
mod create;
mod exec;
mod hooks;
mod init;
mod machine;
mod network;
mod rootfs;
mod steps;
mod supervisor;
mod words;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{Args, Parser, Subcommand};

/// Flags that come before the command, as runc has them.
#[derive(Args, Debug)]
pub struct Globals {
    /// Folder of the containers' states
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// File that errors are appended to
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// What they are written as
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// Accepted, for engines say it: there is no more to log
    #[arg(long)]
    debug: bool,

    /// Names of cgroups are systemd's: slice:prefix:name. systemd is not asked
    #[arg(long)]
    systemd_cgroup: bool,

    /// Accepted, for engines say it: what a user may do is found out
    #[arg(long, value_name = "WORD", num_args = 0..=1, require_equals = true)]
    rootless: Option<Option<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Parser)]
#[command(name = "tinyvmm-oci", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare a container, whose process waits for `start`
    Create(create::Options),
    /// Start what was created
    Start(Id),
    /// Create, start and wait for the end; then delete
    Run(create::Options),
    /// Print what a container is, in JSON
    State(Id),
    /// Send a signal to a container's process
    Kill(commands::Kill),
    /// Remove a container that has ended
    Delete(commands::Delete),
    /// Run another process in a container
    Exec(exec::Options),
    /// Print the host's processes of a container
    Ps(commands::Ps),
    /// Have a container's machine stand still
    Pause(Id),
    /// Have it go on
    Resume(Id),
    /// Print the containers
    List(commands::List),
    /// Print what this runtime can do, in JSON
    Features,
    /// A container's process
    #[command(hide = true)]
    Init(init::Options),
}

/// A container's name.
#[derive(Args, Debug)]
pub struct Id {
    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.globals, cli.command) {
        Ok(code) => code,
        Err(error) => {
            report(&cli.globals, &error);
            ExitCode::FAILURE
        }
    }
}

fn run(globals: &Globals, command: Command) -> Result<ExitCode> {
    let root = container::root(globals.root.as_deref())?;
    match command {
        Command::Create(options) => create::create(&root, globals.systemd_cgroup, &options)?,
        Command::Start(Id { id }) => commands::start(&root, &id)?,
        Command::Run(options) => return create::run(&root, globals.systemd_cgroup, &options),
        Command::State(Id { id }) => commands::state(&root, &id)?,
        Command::Kill(options) => commands::kill(&root, &options)?,
        Command::Delete(options) => commands::delete(&root, &options)?,
        Command::Exec(options) => return exec::exec(&root, &options),
        Command::Ps(options) => commands::ps(&root, &options)?,
        Command::Pause(Id { id }) => commands::pause(&root, &id, true)?,
        Command::Resume(Id { id }) => commands::pause(&root, &id, false)?,
        Command::List(options) => commands::list(&root, &options)?,
        Command::Features => commands::features()?,
        Command::Init(options) => return init::run(&root, &options),
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what went wrong, where engines look: in the log file, and on standard error.
fn report(globals: &Globals, error: &Error) {
    eprintln!("tinyvmm-oci: {error:#}");
    let Some(path) = &globals.log else { return };
    let line = match globals.log_format {
        LogFormat::Text => format!("level=error msg={:?}\n", format!("{error:#}")),
        LogFormat::Json => {
            format!("{}\n", serde_json::json!({"level": "error", "msg": format!("{error:#}")}))
        }
    };
    // Who cannot read it there has it on standard error.
    let file = OpenOptions::new().append(true).create(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

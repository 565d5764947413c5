//! A process that is started under the name `firecracker`: its flags and exit codes (docs/firecracker-api.md).
//!
//! The flags are those of Firecracker 1.16, src/firecracker/src/main.rs; they make the same [`Config`] as tinyvmm's
//! own.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser};
use log::LevelFilter;

use crate::api::FIRECRACKER_VERSION;
use crate::cli::{self, Invocation, usage};
use crate::config::{Config, FirecrackerConfig, StartTimes, instance_id, whole_number};
use crate::inbox::End;
use crate::logger;
use crate::run::{self, RunOutcome};
use crate::signals;
use crate::snapshot;
use tinyvmm::event::Halt;

/// Exit code of a failure (Firecracker's src/vmm/src/lib.rs, FcExitCode, has them all).
const EXIT_GENERIC: u8 = 1;
/// Exit code for an unknown level.
const EXIT_BAD_CONFIGURATION: u8 = 152;
/// Exit code for invalid flags.
const EXIT_BAD_FLAGS: u8 = 153;

/// tinyvmm under the name firecracker: boots a Linux kernel that is described over the API or in a file
#[derive(Parser, Debug)]
#[command(name = "firecracker", disable_version_flag = true)]
struct FirecrackerFlags {
    /// Unix socket to listen at
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    api_sock: PathBuf,
    /// The machine's name
    #[arg(long, value_name = "NAME", default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,
    /// Describe the machine in JSON, and start it
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Do not listen for the API
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// Log how long the guest took to boot, when it writes 123 to the byte at 0xc0000000
    #[arg(long)]
    boot_timer: bool,
    /// File or named pipe for messages, instead of standard output
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// Most verbose level of messages: Error, Warning, Info, Debug, Trace or Off
    #[arg(long, default_value = "Info")]
    level: String,
    /// Messages have their level
    #[arg(long)]
    show_level: bool,
    /// Messages have their place in the source
    #[arg(long)]
    show_log_origin: bool,
    /// File or named pipe for metrics
    #[arg(long, value_name = "FILE")]
    metrics_path: Option<PathBuf>,
    /// When this process was started, in microseconds of the monotonic clock
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,
    /// When this process was started, in microseconds of its processor time
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,
    /// Processor time of the process that started this one, in microseconds
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "51200")]
    #[arg(value_parser = whole_number::<{ 16 << 20 }>)]
    http_api_max_payload_size: u32,
    /// Run without the jail: without seccomp filters and without Landlock
    #[arg(long, conflicts_with = "seccomp_filter")]
    no_seccomp: bool,
    /// Accepted for its users' sake: devices stay on virtio-mmio
    #[arg(long)]
    enable_pci: bool,
    /// Print the version
    #[arg(long)]
    version: bool,
    /// Print the latest version of the format of snapshots
    #[arg(long)]
    snapshot_version: bool,
    /// Print the version of the format of a snapshot's state
    #[arg(long, value_name = "FILE")]
    describe_snapshot: Option<PathBuf>,
    #[command(flatten)]
    refused: RefusedFlags,
}

/// FirecrackerFlags that are known and refused.
#[derive(Args, Debug)]
struct RefusedFlags {
    #[arg(long, hide = true)]
    module: Option<OsString>,
    #[arg(long, hide = true)]
    metadata: Option<OsString>,
    #[arg(long, hide = true)]
    mmds_size_limit: Option<OsString>,
    #[arg(long, hide = true)]
    seccomp_filter: Option<OsString>,
}

impl RefusedFlags {
    fn check(&self) -> Result<()> {
        for (flag, is_there, remedy) in [
            ("module", self.module.is_some(), "messages are chosen by --level only"),
            ("metadata", self.metadata.is_some(), "there is no metadata service"),
            ("mmds-size-limit", self.mmds_size_limit.is_some(), "there is no metadata service"),
            ("seccomp-filter", self.seccomp_filter.is_some(), "the filters are tinyvmm's own"),
        ] {
            if is_there {
                bail!("--{flag}: not supported, leave it out ({remedy})");
            }
        }
        Ok(())
    }
}

/// Whether a process that was started as `program` takes Firecracker's flags: the file name is `firecracker`, or begins
/// with `firecracker-`.
pub fn invoked_as_firecracker(program: Option<&OsString>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name()).and_then(OsStr::to_str);
    name.is_some_and(|name| name == "firecracker" || name.starts_with("firecracker-"))
}

/// Runs the process under the name `firecracker`; returns its exit code.
pub fn main(argv: Vec<OsString>, start: Instant) -> ExitCode {
    let flags = match FirecrackerFlags::try_parse_from(&argv) {
        Ok(flags) => flags,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return show(&error.to_string()),
        Err(error) => {
            let why = usage::explain(&FirecrackerFlags::command(), &argv, &error);
            return fail(format_args!("{why} (see --help)"), EXIT_BAD_FLAGS);
        }
    };
    match shown(&flags).transpose() {
        Ok(None) => {}
        Ok(Some(text)) => return show(&text),
        Err(error) => return fail(format_args!("{error:#}"), EXIT_GENERIC),
    }
    let level = match logger::level(&flags.level) {
        Ok(level) => level,
        Err(error) => return fail(format_args!("--{error:#}"), EXIT_BAD_CONFIGURATION),
    };
    let config = match read(flags, level) {
        Ok(config) => config,
        Err(error) => return fail(format_args!("{error:#}"), EXIT_BAD_FLAGS),
    };
    match run::run(&config, None, start) {
        Ok(outcome) => conclude(&outcome),
        Err(error) => fail(format_args!("{error:#}"), EXIT_GENERIC),
    }
}

/// What is printed instead of running a machine, if `flags` ask for that.
fn shown(flags: &FirecrackerFlags) -> Option<Result<String>> {
    // Clients expect three numbers, and the format has one.
    let of_format = |version: u32| format!("v{version}.0.0\n");
    if flags.version {
        let own = env!("CARGO_PKG_VERSION");
        // Clients look for the version in the first line.
        return Some(Ok(format!(
            "Firecracker v{FIRECRACKER_VERSION}\n\nThis is tinyvmm {own}, which speaks Firecracker's API of that version.\n"
        )));
    }
    if flags.snapshot_version {
        return Some(Ok(of_format(snapshot::VERSION)));
    }
    let state = flags.describe_snapshot.as_deref();
    state.map(|state| snapshot::version_of(state).map(of_format).context("--describe-snapshot"))
}

/// Makes a configuration of `flags`, and has messages written as Firecracker's are.
fn read(flags: FirecrackerFlags, level: LevelFilter) -> Result<Config> {
    flags.refused.check()?;
    signals::intercept()?;
    logger::init(level);
    logger::write_as_firecracker(&flags.id, flags.show_level, flags.show_log_origin);
    let Invocation::Run(cli) = cli::parse(vec!["tinyvmm".into()])? else {
        bail!("tinyvmm without flags is no machine");
    };
    let mut config = cli.flags.config;
    config.machine.0.boot_timer = flags.boot_timer;
    let process = &mut config.process;
    process.api_sock = (!flags.no_api).then_some(flags.api_sock);
    process.id = flags.id;
    process.config_file = flags.config_file;
    process.http_api_max_payload_size = flags.http_api_max_payload_size;
    process.no_jail = flags.no_seccomp;
    process.firecracker = Some(FirecrackerConfig {
        log_path: flags.log_path,
        metrics_path: flags.metrics_path,
        wants_pci: flags.enable_pci,
        start: StartTimes {
            wall: flags.start_time_us,
            cpu: flags.start_time_cpu_us,
            parent_cpu: flags.parent_cpu_time_us,
        },
    });
    config.validate().context("flags")?;
    Ok(config)
}

/// A guest that has ended by itself is a success, whatever its end was.
fn exit_code(end: &End) -> u8 {
    match end {
        End::Guest(Halt::Exited(status)) if *status != 0 => EXIT_GENERIC,
        End::Guest(Halt::Internal(_)) | End::Timeout | End::Signal => EXIT_GENERIC,
        End::Killed(signal) => signals::intercepted(*signal).map_or(EXIT_GENERIC, |(code, _)| code),
        End::Guest(_) | End::Api | End::Quit => 0,
    }
}

fn conclude(RunOutcome { end, reason, .. }: &RunOutcome) -> ExitCode {
    let code = exit_code(end);
    match (end, reason) {
        (End::Guest(Halt::TripleFault), Some(reason)) => log::warn!("{end}; {reason}"),
        (End::Guest(Halt::TripleFault | Halt::Panic), _) => log::warn!("{end}"),
        (End::Guest(Halt::Internal(_)), Some(reason)) => log::error!("{reason}"),
        _ => log::info!("{end}"),
    }
    log::info!("Vmm is stopping.");
    if code != 0 {
        return fail(end, code);
    }
    log::info!("Firecracker exiting successfully. exit_code=0");
    ExitCode::SUCCESS
}

fn fail(why: impl std::fmt::Display, code: u8) -> ExitCode {
    log::error!("{why}");
    logger::print_message(why);
    log::error!("Firecracker exiting with error. exit_code={code}");
    ExitCode::from(code)
}

/// A reader that has gone away is not an error.
fn show(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_by_the_name_of_the_program() {
        let meant = |name: &str| invoked_as_firecracker(Some(&name.into()));
        for name in ["firecracker", "/usr/bin/firecracker", "./firecracker-v1.16.1-x86_64"] {
            assert!(meant(name), "{name}");
        }
        for name in ["tinyvmm", "firecrackers", "/firecracker/tinyvmm", "", "/"] {
            assert!(!meant(name), "{name}");
        }
        assert!(!invoked_as_firecracker(None));
    }

    #[test]
    fn the_end_of_a_guest_is_a_success_and_all_else_is_not() {
        for halt in [Halt::PowerOff, Halt::Reset, Halt::TripleFault, Halt::Panic] {
            assert_eq!(exit_code(&End::Guest(halt)), 0);
        }
        // A status that the guest chooses cannot be taken for one of Firecracker's.
        let internal = End::Guest(Halt::Internal(String::new()));
        for end in [End::Guest(Halt::Exited(148)), End::Signal, internal] {
            assert_eq!(exit_code(&end), 1, "{end}");
        }
    }
}

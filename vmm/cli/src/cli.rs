//! The command line: flags and sub-commands, and how a configuration file adds to them.

mod complete;
mod keys;
mod pages;
mod texts;
pub mod usage;

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;
use tinyvmm::config::DiskConfig;

pub use complete::Shell;
pub use keys::{FileKeys, read_text};

use crate::config::Config;
#[cfg(feature = "agent")]
use crate::exec;
use crate::print_config::PrintFormat;
#[cfg(feature = "api")]
use crate::{ctl, machines};

/// Exit code of an internal error.
pub const EXIT_INTERNAL: u8 = 1;
/// Exit code for an invalid command line or configuration file.
pub const EXIT_USAGE: u8 = 2;
/// Exit code when a file or the host does not let the machine start.
pub const EXIT_CANNOT_START: u8 = 3;

/// Boots a Linux kernel in a virtual machine on KVM.
#[derive(Parser, Debug)]
#[command(
    name = "tinyvmm",
    version,
    long_about = "Boots a Linux kernel in a virtual machine on KVM, with CPUs, memory, a serial \
                  console on this terminal, and disks.",
    args_conflicts_with_subcommands = true,
    after_help = pages::examples("tinyvmm"),
    after_long_help = pages::epilogue("tinyvmm")
)]
pub struct Cli {
    /// A sub-command; without one a machine is booted.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The flags without one.
    #[command(flatten)]
    pub flags: Flags,

    /// The flags that the file of --config has set.
    #[arg(skip)]
    pub keys: Option<FileKeys>,
}

/// The flags of a machine that is booted.
#[derive(Args, Debug)]
pub struct Flags {
    /// The machine and its process.
    #[command(flatten)]
    pub config: Config,

    /// Read flags from a TOML file, e.g. `cpus = 2` or `disk = ["root.img,readonly"]`
    ///
    /// FileKeys are the names of the flags of this page; flags given here win over the file.
    #[arg(long = "config", value_name = "FILE", help_heading = "Program", value_hint = clap::ValueHint::FilePath)]
    pub config_toml: Option<PathBuf>,

    /// Print the machine that would be run, as a configuration file or as JSON, and exit
    ///
    /// The JSON has every key, `null` where it is not set, and what the machine takes from the host: `cpus`, `memory`
    /// in bytes, and the files of `disks`, each with whether other machines may share it. Exit code 2, with the
    /// reason on stderr: no machine can run like this on any host.
    #[arg(long, value_name = "toml|json", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "toml", hide_possible_values = true, help_heading = "Program")]
    pub print_config: Option<PrintFormat>,

    /// Which messages of tinyvmm's own go to stderr: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", help_heading = "Program")]
    #[arg(value_parser = PossibleValuesParser::new(LEVELS).map(|level| log_level(&level)))]
    #[arg(ignore_case = true, hide_possible_values = true)]
    pub log_level: LevelFilter,
}

impl Deref for Cli {
    type Target = Flags;

    fn deref(&self) -> &Flags {
        &self.flags
    }
}

impl DerefMut for Cli {
    fn deref_mut(&mut self) -> &mut Flags {
        &mut self.flags
    }
}

impl Cli {
    /// Adds file and line to an error that begins with a flag which the configuration file has set.
    pub fn place(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.keys {
            Some(keys) => keys.place(error),
            None => error,
        }
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log_level(text: &str) -> LevelFilter {
    text.parse().unwrap_or(LevelFilter::Warn)
}

/// The sub-commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say whether this host can run machines, and what to do if not
    #[cfg(feature = "doctor")]
    #[command(after_help = pages::examples("doctor"), after_long_help = pages::epilogue("doctor"))]
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Boot the machines that a file describes and check what they do
    #[cfg(feature = "boot-test")]
    #[command(after_help = pages::examples("boot-test"))]
    #[command(after_long_help = pages::epilogue("boot-test"))]
    BootTest(boot_test::BootTestOptions),
    /// Show or remove what is cached: unpacked kernels, disks of images and templates
    #[command(after_help = pages::examples("cache"), after_long_help = pages::epilogue("cache"))]
    Cache {
        /// What to do with the cache
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Control a machine that was started with --name or --api-sock
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("ctl"), after_long_help = pages::epilogue("ctl"))]
    Ctl(ctl::CtlOptions),
    /// List the machines that have names
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("ps"), after_long_help = pages::epilogue("ps"))]
    Ps(machines::PsOptions),
    /// Press the power button of a machine, and end it if it does not power off in time
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("stop"), after_long_help = pages::epilogue("stop"))]
    Stop(machines::StopOptions),
    /// Print what a machine has printed on its console
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("logs"), after_long_help = pages::epilogue("logs"))]
    Logs(machines::LogsOptions),
    /// Use the console of a machine that runs
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("attach"), after_long_help = pages::epilogue("attach"))]
    Attach(machines::AttachOptions),
    /// Run a command in the guest of a machine
    #[cfg(feature = "agent")]
    #[command(after_help = pages::examples("exec"), after_long_help = pages::epilogue("exec"))]
    Exec(exec::ExecOptions),
    /// Run a shell in the guest of a machine, on this terminal
    #[cfg(feature = "agent")]
    #[command(after_help = pages::examples("shell"), after_long_help = pages::epilogue("shell"))]
    Shell(exec::ShellOptions),
    /// Copy files into the guest of a machine, or out of it
    #[cfg(feature = "agent")]
    #[command(after_help = pages::examples("cp"), after_long_help = pages::epilogue("cp"))]
    Cp(exec::CpOptions),
    /// Print a script by which a shell completes tinyvmm's command lines
    #[command(after_help = pages::examples("completions"))]
    #[command(after_long_help = pages::epilogue("completions"))]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: Shell,
    },
    /// Print a page of the manual, for man(1)
    #[command(after_help = pages::examples("man"), after_long_help = pages::epilogue("man"))]
    Man {
        /// The page of a sub-command, instead of tinyvmm's own
        #[arg(value_name = "SUB-COMMAND")]
        #[arg(value_parser = PossibleValuesParser::new(pages::names()), hide_possible_values = true)]
        name: Option<String>,
    },
    /// Print completions: called by the scripts of `completions`
    #[command(hide = true)]
    Complete {
        /// The words typed so far, without the program's name
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// The actions on the caches of unpacked kernels, of disks and of templates.
#[derive(Subcommand, Debug)]
pub enum CacheCommand {
    /// Print each entry: its size, how long ago it was used, and where its kernel or image was then
    ///
    /// Between them is the start of its name: of a kernel the BLAKE3 hash of its bzImage, of a disk that of its image's
    /// layers, of a template that of all that it was made of.
    List,
    /// Remove all entries
    Clear,
}

/// A parsed command line.
#[derive(Debug)]
pub enum Invocation {
    /// Run this command.
    Run(Box<Cli>),
    /// Print this text (help, version).
    Shown(String),
}

/// Parses `argv`, the program's name first, and the configuration file that it names.
/// Errors are one line.
pub fn parse(argv: Vec<OsString>) -> Result<Invocation> {
    let whole = || Cli::command().try_get_matches_from(&argv);
    let matches = match machine_of(&argv).map_or_else(whole, Ok) {
        Ok(matches) => matches,
        Err(e) if is_shown(&e) => {
            // clap takes -hda for -h.
            if let Some(word) = usage::taken_for_help(&argv) {
                bail!("{word} (see tinyvmm --help)");
            }
            return Ok(Invocation::Shown(e.to_string()));
        }
        Err(e) => return Err(wrong(&argv, &e)),
    };
    let Some(file) = matches.get_one::<PathBuf>("config_toml") else {
        return Ok(Invocation::Run(Box::new(cli(&matches)?)));
    };
    let keys = FileKeys::read(file, &matches)?;
    let program = argv.first().cloned().unwrap_or_default();
    // The file's flags alone first, so that an error in the file is reported with the file's name.
    let alone = std::iter::once(&program).chain(keys.flags());
    let merged = alone.clone().chain(argv.get(1..).unwrap_or(&[]));
    Cli::command().try_get_matches_from(alone).map_err(|e| keys.place(one_line(&e)))?;
    let matches = Cli::command().try_get_matches_from(merged).map_err(|e| wrong(&argv, &e))?;
    let cli = cli(&matches).map_err(|error| keys.place(error))?;
    Ok(Invocation::Run(Box::new(Cli { keys: Some(keys), ..cli })))
}

/// What `argv` has if it is of a machine, and right: without the sub-commands, which take longer to describe than the rest.
/// All else is for the whole command to parse, or to explain.
fn machine_of(argv: &[OsString]) -> Option<ArgMatches> {
    let has_flags = argv.get(1).is_none_or(|word| word.as_encoded_bytes().starts_with(b"-"));
    let flags = || Flags::augment_args(clap::Command::new("tinyvmm"));
    has_flags.then(|| flags().try_get_matches_from(argv).ok()).flatten()
}

fn cli(matches: &ArgMatches) -> Result<Cli> {
    let cli = Cli::from_arg_matches(matches).map_err(|e| one_line(&e))?;
    // The API's drives have names of any length, of which a guest sees the start.
    DiskConfig::ensure_named_apart(&cli.config.machine.0.disk)?;
    Ok(cli)
}

fn is_shown(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// clap's error for flags that stand for a configuration's keys, in one line.
pub(crate) fn one_line(error: &clap::Error) -> anyhow::Error {
    anyhow!("{} (see tinyvmm --help)", usage::explain(&Cli::command(), &[], error))
}

/// clap's error for a command line, in one line.
fn wrong(argv: &[OsString], error: &clap::Error) -> anyhow::Error {
    let command = Cli::command();
    let (why, path) = (usage::explain(&command, argv, error), usage::path(&command, argv));
    anyhow!("{why} (see {path} --help)")
}

/// The completions for the last of `words`, one a line.
pub fn offers(words: &[String]) -> String {
    complete::offers(&Cli::command(), words)
}

/// The man page of the sub-command `name`, or tinyvmm's own, in roff.
pub fn man_page(name: Option<&str>) -> String {
    pages::man(&Cli::command(), name)
}

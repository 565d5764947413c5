//! The command line: flags and sub-commands, and how a configuration file adds to them.

mod complete;
mod keys;
mod pages;
pub mod usage;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;

pub use complete::Shell;
pub use keys::{Keys, read_text};

use crate::config::Config;
#[cfg(feature = "api")]
use crate::ctl;
use crate::print_config::Format;

/// Exit code of an internal error.
pub const EXIT_INTERNAL: u8 = 1;
/// Exit code of a command line or configuration file that cannot be.
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
    /// Anything but booting a machine.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The machine, and how it is run.
    #[command(flatten)]
    pub config: Config,

    /// Read flags from a TOML file, e.g. `cpus = 2` or `disk = ["root.img,readonly"]`
    ///
    /// Keys are the names of the flags of this page; flags given here win over the file.
    #[arg(long = "config", value_name = "FILE", help_heading = "Program", value_hint = clap::ValueHint::FilePath)]
    pub config_toml: Option<PathBuf>,

    /// Print the machine that would be run, as a configuration file or as JSON, and exit
    ///
    /// The JSON has every key, `null` where it is not set, and what the machine takes from the host: `cpus`, `memory`
    /// in bytes, and the files of `disks`, each with whether other machines may share it. Exit code 2, with the
    /// reason on stderr: no machine can run like this on any host.
    #[arg(long, value_name = "toml|json", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "toml", hide_possible_values = true, help_heading = "Program")]
    pub print_config: Option<Format>,

    /// Which messages of tinyvmm's own go to stderr: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", help_heading = "Program")]
    #[arg(value_parser = PossibleValuesParser::new(LEVELS).map(|level| log_level(&level)))]
    #[arg(ignore_case = true, hide_possible_values = true)]
    pub log_level: LevelFilter,

    /// What came from the file of --config.
    #[arg(skip)]
    pub keys: Option<Keys>,
}

impl Cli {
    /// Says of an error of the machine that begins with a flag where in the configuration file this is.
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

/// What else tinyvmm does.
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
    BootTest(boot_test::Options),
    /// Show or remove the unpacked kernels that are kept for the next time
    #[command(after_help = pages::examples("cache"), after_long_help = pages::epilogue("cache"))]
    Cache {
        /// What to do with them
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Speak to a machine that was started with --api-sock
    #[cfg(feature = "api")]
    #[command(after_help = pages::examples("ctl"), after_long_help = pages::epilogue("ctl"))]
    Ctl(ctl::Options),
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
    /// What the scripts of `completions` ask for
    #[command(hide = true)]
    Complete {
        /// What is typed so far, without the program's name
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// What can be done with kept kernels.
#[derive(Subcommand, Debug)]
pub enum CacheCommand {
    /// Print the size of each, how long ago it was booted, and its bzImage: BLAKE3 hash, and where it was then
    List,
    /// Remove all of them
    Clear,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Do it.
    Run(Box<Cli>),
    /// Only show this text (help, version).
    Shown(String),
}

/// Parses `argv`, the program's name first, and the configuration file that it names.
/// Errors are one line.
pub fn parse(argv: Vec<OsString>) -> Result<Invocation> {
    let matches = match Cli::command().try_get_matches_from(&argv) {
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
    let keys = Keys::read(file, &matches)?;
    let program = argv.first().cloned().unwrap_or_default();
    // Once alone, so that the file's own errors are told with its name.
    let alone = std::iter::once(&program).chain(keys.flags());
    let merged = alone.clone().chain(argv.get(1..).unwrap_or(&[]));
    Cli::command().try_get_matches_from(alone).map_err(|e| keys.place(one_line(&e)))?;
    let matches = Cli::command().try_get_matches_from(merged).map_err(|e| wrong(&argv, &e))?;
    Ok(Invocation::Run(Box::new(Cli { keys: Some(keys), ..cli(&matches)? })))
}

fn cli(matches: &ArgMatches) -> Result<Cli> {
    Cli::from_arg_matches(matches).map_err(|e| one_line(&e))
}

fn is_shown(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// What clap says of flags that stand for a configuration's keys, in one line.
pub(crate) fn one_line(error: &clap::Error) -> anyhow::Error {
    anyhow!("{} (see tinyvmm --help)", usage::explain(&Cli::command(), &[], error))
}

/// The same of a command line.
fn wrong(argv: &[OsString], error: &clap::Error) -> anyhow::Error {
    let command = Cli::command();
    let (why, path) = (usage::explain(&command, argv, error), usage::path(&command, argv));
    anyhow!("{why} (see {path} --help)")
}

/// What a shell can offer for the last of `words`.
pub fn offers(words: &[String]) -> String {
    complete::offers(&Cli::command(), words)
}

/// The page of the manual of the sub-command `name`, or tinyvmm's own, in roff.
pub fn man_page(name: Option<&str>) -> String {
    pages::man(&Cli::command(), name)
}

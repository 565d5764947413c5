//! The command line: flags and sub-commands, and how a configuration file adds to them.

mod keys;
pub mod usage;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;

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

const EXIT_CODES: &str = "\
Exit codes:
    0  the guest powered off
    1  internal error
    2  the command line or the file of --config is wrong
    3  the machine cannot start: a file is unfit or the host lacks something
    4  the guest rebooted, with --no-reboot
    5  triple fault in the guest
    6  kernel panic in the guest
    7  --timeout is over
    8  stopped by a signal, the guest did not power off in time; or stopped over the API
    9  Ctrl-A x
   10  the jail stopped it: a thread made a system call that it never needs
    any, if the guest writes it to port 0x701 (or has run a COMMAND; 125 if the machine ended otherwise)

SIGTERM, SIGINT, SIGHUP and SIGQUIT press the power button; a guest that has not powered off after
5 s, or another signal half a second later, ends the hard way.";

const EXAMPLES: &str = "\
Examples:
    tinyvmm --kernel bzImage --initrd initrd.img
    tinyvmm --cpus 2 --mem 512M --kernel bzImage --disk root.img
    tinyvmm --config vm.toml --mem 1G --print-config";

/// Boots a Linux kernel in a virtual machine on KVM.
#[derive(Parser, Debug)]
#[command(
    name = "tinyvmm",
    version,
    long_about = "Boots a Linux kernel in a virtual machine on KVM, with CPUs, memory, a serial \
                  console on this terminal, and disks.",
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}")
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
    #[arg(value_parser = log_level)]
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

fn log_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse().map_err(|_| "say off, error, warn, info, debug or trace")
}

/// What else tinyvmm does.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say whether this host can run machines, and what to do if not
    ///
    /// Exit code 0: ready; 1: limited; 2: unusable.
    #[cfg(feature = "doctor")]
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Boot the machines that a file describes and check what they do
    ///
    /// Exit code 0: all passed; 1: some failed; 2: the file is wrong; 3: no machine can run here.
    #[cfg(feature = "boot-test")]
    BootTest(boot_test::Options),
    /// Show or remove the unpacked kernels that are kept for the next time
    Cache {
        /// What to do with them
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Speak to a machine that was started with --api-sock
    #[cfg(feature = "api")]
    Ctl(ctl::Options),
    /// Print a completion script for a shell
    Completions {
        /// The shell to complete in
        shell: Shell,
    },
    /// Print this manual as a man page
    Man,
}

/// What can be done with kept kernels.
#[derive(Subcommand, Debug)]
pub enum CacheCommand {
    /// Print the size of each, how long ago it was booted, and the BLAKE3 hash of its bzImage
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

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tinyvmm", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page, in roff.
pub fn man_page() -> String {
    let mut page = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = clap_mangen::Man::new(Cli::command()).render(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

//! The command line: flags and sub-commands, and how a configuration file adds to them.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;

use crate::config::Config;
#[cfg(feature = "api")]
use crate::ctl;
use crate::print_config::Format;

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

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
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Invocation::Shown(e.to_string()));
        }
        Err(e) => return Err(of_sub_command(&argv, &e).unwrap_or_else(|| one_line(&e))),
    };
    let Some(file) = matches.get_one::<PathBuf>("config_toml") else {
        return Ok(Invocation::Run(Box::new(cli(&matches)?)));
    };
    let named = || format!("configuration file {}", file.display());
    let from_file = flags_of_file(file, &matches).with_context(named)?;
    let program = argv.first().cloned().unwrap_or_default();
    // Once alone, so that the file's own errors are told with its name.
    let alone = std::iter::once(&program).chain(&from_file);
    Cli::command().try_get_matches_from(alone).map_err(|e| one_line(&e)).with_context(named)?;
    let merged = std::iter::once(&program).chain(&from_file).chain(argv.get(1..).unwrap_or(&[]));
    let matches = Cli::command().try_get_matches_from(merged).map_err(|e| one_line(&e))?;
    Ok(Invocation::Run(Box::new(cli(&matches)?)))
}

/// What to say of `error` if the first word is no flag: a sub-command, or what clap takes for the start of a COMMAND.
fn of_sub_command(argv: &[OsString], error: &clap::Error) -> Option<anyhow::Error> {
    let word = argv.get(1)?.to_string_lossy();
    let command = Cli::command();
    if word.starts_with('-') {
        return None;
    }
    if let Some(known) = command.find_subcommand(&*word) {
        let more = format!("(see tinyvmm {word} --help)");
        if error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Some(anyhow!("{} {more}", message(error)));
        }
        let below: Vec<_> = known.get_subcommands().map(clap::Command::get_name).collect();
        return Some(anyhow!("{word}: say what to do: {} {more}", below.join(", ")));
    }
    if Path::new(&*word).is_file() {
        return Some(anyhow!("'{word}' is no sub-command: is it a kernel? Say --kernel {word}"));
    }
    let names = || command.get_subcommands().map(clap::Command::get_name);
    let begun = names().find(|name| name.starts_with(&*word));
    let nearest = begun.unwrap_or_else(|| nearest(&word, names()));
    Some(anyhow!("'{word}' is no sub-command, the nearest is '{nearest}' (see tinyvmm --help)"))
}

fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> &'a str {
    names.min_by_key(|name| strsim::damerau_levenshtein(name, word)).unwrap_or_default()
}

fn cli(matches: &ArgMatches) -> Result<Cli> {
    Cli::from_arg_matches(matches).map_err(|e| one_line(&e))
}

/// Reads a file that is to be text of at most `max` bytes, with or without a byte order mark. It may be a pipe, or endless.
pub fn read_text(file: &Path, max: u64) -> Result<String> {
    let mut text = String::new();
    let read = |file: File| file.take(max + 1).read_to_string(&mut text);
    File::open(file).and_then(read).context("cannot read it")?;
    ensure!(text.len() as u64 <= max, "is larger than {} KiB", max >> 10);
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// The flags that `file` stands for, without those that the command line gives itself.
fn flags_of_file(file: &Path, given: &ArgMatches) -> Result<Vec<OsString>> {
    let text = read_text(file, MAX_CONFIG)?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| toml_error(&text, &e))?;
    let command = Cli::command();
    let known: Vec<&Arg> = command.get_arguments().filter(|a| is_key(a)).collect();
    let mut flags = Vec::new();
    for (key, value) in &table {
        let Some(arg) = known.iter().find(|arg| arg.get_long() == Some(key)) else {
            return Err(no_such_key(key, known.iter().filter_map(|arg| arg.get_long())));
        };
        if given.value_source(arg.get_id().as_str()) != Some(ValueSource::CommandLine) {
            push_flags(&mut flags, key, value, arg)?;
        }
    }
    Ok(flags)
}

/// Whether a flag is a key of configuration files too.
fn is_key(arg: &Arg) -> bool {
    arg.get_long()
        .is_some_and(|long| !["config", "print-config", "help", "version"].contains(&long))
}

/// Adds what `key = value` of a configuration file stands for.
fn push_flags(flags: &mut Vec<OsString>, key: &str, value: &toml::Value, arg: &Arg) -> Result<()> {
    let mut push = |text: &dyn Display| flags.push(format!("--{key}={text}").into());
    match value {
        toml::Value::String(text) => push(text),
        toml::Value::Integer(number) => push(number),
        toml::Value::Boolean(on) => push(on),
        toml::Value::Array(items) if matches!(arg.get_action(), ArgAction::Append) => {
            for item in items {
                push(&item.as_str().ok_or_else(|| anyhow!("{key}: say a list of strings"))?);
            }
        }
        other => bail!("{key} cannot be of type {}: say a string", other.type_str()),
    }
    Ok(())
}

/// Says that there is no such key, and which of `known` may be meant.
fn no_such_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> anyhow::Error {
    anyhow!("there is no key '{key}', the nearest is '{}'", nearest(key, known.into_iter()))
}

/// What is wrong with the TOML of `text`, with the line.
fn toml_error(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.get(..start).map_or(0, |before| before.matches('\n').count()) + 1;
    anyhow!("line {line}: {}", error.message().replace('\n', ", "))
}

/// clap's message without its usage lines, which `--help` shows better.
pub(crate) fn one_line(error: &clap::Error) -> anyhow::Error {
    anyhow!("{} (see tinyvmm --help)", message(error))
}

/// The same without where to read more.
pub(crate) fn message(error: &clap::Error) -> String {
    let text = error.to_string();
    let told = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let told: Vec<&str> = told
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .map(|line| line.trim_start_matches("error: "))
        .collect();
    told.join("; ").replace(":; ", ": ")
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

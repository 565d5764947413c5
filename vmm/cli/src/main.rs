//! The `tinyvmm` command: parse, dispatch, one line on an error, exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use tinyvmm::event::Halt;
use tinyvmm_cli::cli::{self, CacheCommand, Cli, Command, Invocation};
#[cfg(feature = "api")]
use tinyvmm_cli::config::Config;
#[cfg(feature = "agent")]
use tinyvmm_cli::exec;
use tinyvmm_cli::inbox::End;
use tinyvmm_cli::kernel_cache::Cache;
use tinyvmm_cli::print_config::{self, PrintFormat};
use tinyvmm_cli::run::{self, RunOutcome};
use tinyvmm_cli::snapshot::Restored;
#[cfg(feature = "api")]
use tinyvmm_cli::{clones, machines, names};
use tinyvmm_cli::{command, logger, process, root_dir, signals, template, vsock};

fn main() -> ExitCode {
    let start = process::start_time();
    process::forget_backtraces();
    signals::reset();
    #[cfg(feature = "boot-test")]
    let is_tested = boot_test::die_with_runner();
    #[cfg(not(feature = "boot-test"))]
    let is_tested = false;
    let argv: Vec<_> = std::env::args_os().collect();
    if let Some(code) = by_another_name(&argv, start) {
        return code;
    }
    let cli = match cli::parse(argv) {
        Ok(Invocation::Run(cli)) => cli,
        Ok(Invocation::Shown(text)) => return show(&text),
        Err(error) => return fail(&error, cli::EXIT_USAGE),
    };
    logger::init(cli.log_level);
    if let Some(command) = &cli.command {
        return sub_command(command);
    }
    if let Some(format) = cli.print_config {
        return print_config(&cli, format).unwrap_or_else(|error| fail(&error, cli::EXIT_USAGE));
    }
    run_machine(*cli, start, is_tested)
}

/// Runs the machine that `cli` describes. What a boot test's command prints is looked at on the console.
fn run_machine(mut cli: Cli, start: Instant, is_tested: bool) -> ExitCode {
    #[cfg(feature = "api")]
    if let Some(count @ 2..) = cli.config.process.snapshot.count {
        let started = clones::start(&cli.config, count);
        return started.unwrap_or_else(|error| fail(&error, cli::EXIT_USAGE));
    }
    #[cfg(feature = "image")]
    if let Err(error) = tinyvmm_cli::images::settle(&mut cli.config) {
        return fail(&cli.place(error), cli::EXIT_CANNOT_START);
    }
    if let Err(error) = root_dir::settle(&mut cli.config) {
        return fail(&cli.place(error), cli::EXIT_USAGE);
    }
    let in_guest = !cli.config.process.command.is_empty();
    // A command's status is passed on as it is; tinyvmm's own exit codes must not be taken for it.
    let ours = |code| if in_guest { command::EXIT_NO_STATUS } else { code };
    if !is_tested {
        cli.config.prefer_agent();
    }
    let adopted = match cli.config.process.snapshot.template {
        true => template::adopt(&mut cli.config),
        false => Restored::adopt(&mut cli.config),
    };
    let restored = match adopted {
        Ok(restored) => restored,
        Err(error) => return fail(&cli.place(error), ours(cli::EXIT_CANNOT_START)),
    };
    if let Err(error) = cli.config.validate() {
        return fail(&cli.place(error), ours(cli::EXIT_USAGE));
    }
    #[cfg(feature = "api")]
    match into_background(&mut cli.config) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(error) => return fail(&error, ours(cli::EXIT_CANNOT_START)),
    }
    match run::run(&cli.config, restored, start) {
        Ok(RunOutcome { given_up: Some(code), .. }) => ExitCode::from(code),
        Ok(RunOutcome { end: End::Guest(Halt::Exited(status)), .. }) if in_guest => {
            ExitCode::from(status)
        }
        Ok(outcome) => conclude(&outcome, ours(outcome.end.exit_code())),
        Err(error) => {
            template::blame(&cli.config);
            fail(&cli.place(error), ours(cli::EXIT_CANNOT_START))
        }
    }
}

/// The exit code of this program if it was started under a name by which it is another one.
fn by_another_name(argv: &[OsString], _start: Instant) -> Option<ExitCode> {
    if argv.first().is_some_and(|name| name == vsock::DIALER) {
        return Some(vsock::dial(argv));
    }
    #[cfg(feature = "api")]
    if tinyvmm_cli::firecracker::invoked_as_firecracker(argv.first()) {
        return Some(tinyvmm_cli::firecracker::main(argv.to_vec(), _start));
    }
    None
}

/// Runs a sub-command; returns its exit code.
fn sub_command(command: &Command) -> ExitCode {
    match command {
        #[cfg(feature = "doctor")]
        Command::Doctor { json } => tinyvmm_cli::doctor::main(*json),
        #[cfg(feature = "boot-test")]
        Command::BootTest(options) => run_boot_tests(options),
        Command::Cache { command } => {
            cache(command).unwrap_or_else(|error| fail(&error, cli::EXIT_CANNOT_START))
        }
        #[cfg(feature = "api")]
        Command::Ctl(options) => match options.validate() {
            Ok(()) => done(tinyvmm_cli::ctl::main(options)),
            Err(error) => fail(&error, cli::EXIT_USAGE),
        },
        #[cfg(feature = "api")]
        Command::Ps(options) => done(machines::ps(options)),
        #[cfg(feature = "api")]
        Command::Stop(options) => done(machines::stop(options)),
        #[cfg(feature = "api")]
        Command::Logs(options) => done(machines::logs(options)),
        #[cfg(feature = "api")]
        Command::Attach(options) => done(machines::attach(options)),
        #[cfg(feature = "agent")]
        Command::Exec(options) => exec::exec(options),
        #[cfg(feature = "agent")]
        Command::Shell(options) => exec::shell(options),
        #[cfg(feature = "agent")]
        Command::Cp(options) => done(exec::cp(options)),
        Command::Completions { shell } => show(shell.script()),
        Command::Complete { words } => show(&cli::offers(words)),
        Command::Man { name } => show(&cli::man_page(name.as_deref())),
    }
}

/// The exit code of a sub-command for machines that run.
#[cfg(feature = "api")]
fn done(code: Result<ExitCode>) -> ExitCode {
    code.unwrap_or_else(|error| fail(&error, cli::EXIT_INTERNAL))
}

/// Prepares a machine that has a name; with `--detach`, returns the exit code of the process that does not run it.
#[cfg(feature = "api")]
fn into_background(config: &mut Config) -> Result<Option<ExitCode>> {
    let new_name = names::adopt(config)?;
    if !config.process.detach {
        return Ok(None);
    }
    names::detach(new_name.as_deref(), config.process.snapshot.restore.is_some())
}

/// Each machine of a boot test is a process of this program.
#[cfg(feature = "boot-test")]
fn run_boot_tests(options: &boot_test::BootTestOptions) -> ExitCode {
    match std::env::current_exe().context("cannot find the path of this program") {
        Ok(program) => boot_test::main(options, &program),
        Err(error) => fail(&error, cli::EXIT_INTERNAL),
    }
}

/// A configuration file may describe half a machine, with the other half in flags; JSON is of a machine that can run.
fn print_config(cli: &Cli, format: PrintFormat) -> Result<ExitCode> {
    let text = match format {
        PrintFormat::Toml if cli.config.process.command.is_empty() => {
            print_config::toml(&cli.config)?
        }
        PrintFormat::Toml => {
            bail!("--print-config: a configuration file has no COMMAND, leave one out")
        }
        PrintFormat::Json => print_config::json(&cli.config, cli.log_level)?,
    };
    let shown = show(&text);
    if format == PrintFormat::Json {
        cli.config.validate()?;
    }
    Ok(shown)
}

/// One line that says how the machine ended. A power-off is a success, and success is quiet.
fn conclude(RunOutcome { end, reason, .. }: &RunOutcome, code: u8) -> ExitCode {
    match reason {
        Some(reason) => logger::print_message(format_args!("{end}; {reason}")),
        None if code == 0 => log::info!("{end}"),
        None => logger::print_message(end),
    }
    ExitCode::from(code)
}

/// Digits of a hash that fit into a line and make it unique among the entries.
const HASH_DIGITS: usize = 16;

/// Runs `tinyvmm cache`.
fn cache(command: &CacheCommand) -> Result<ExitCode> {
    let caches = [
        Cache::open_if_there().context("kernel cache")?,
        #[cfg(feature = "image")]
        Cache::open_disks_if_there().context("cache of disks")?,
    ];
    let caches: Vec<_> = caches.into_iter().flatten().collect();
    #[cfg(feature = "agent")]
    let templates = template::Store::open_if_there().context("templates")?;
    if let CacheCommand::Clear = command {
        caches.iter().try_for_each(Cache::clear)?;
        #[cfg(feature = "agent")]
        templates.as_ref().map_or(Ok(()), template::Store::clear)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    let entries = caches.iter().map(Cache::entries).collect::<Result<Vec<_>>>()?;
    for entry in entries.into_iter().flatten() {
        add_entry(&mut text, (entry.size, entry.used, &entry.key), entry.path, "");
    }
    #[cfg(feature = "agent")]
    for entry in templates.as_ref().map_or(Ok(Vec::new()), template::Store::entries)? {
        add_entry(&mut text, (entry.size, entry.used, &entry.key), entry.kernel, "template of ");
    }
    Ok(show(&text))
}

/// Adds the line of an entry with this size, time of use and name, and the path of its kernel, to `text`.
fn add_entry(
    text: &mut String,
    (size, used, key): (u64, SystemTime, &str),
    path: Option<PathBuf>,
    what: &str,
) {
    let minutes = used.elapsed().unwrap_or_default().as_secs() / 60;
    // Quoted and escaped: the name can have any bytes.
    let path = path.map_or_else(|| "?".into(), |path| format!("{path:?}"));
    let (mib, hash) = (size >> 20, &key[..HASH_DIGITS]);
    *text += &format!("{mib:>5} MiB  {minutes:>6} min  {hash}  {what}{path}\n");
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    logger::print_message(format_args!("{error:#}"));
    ExitCode::from(code)
}

/// A reader that has gone away (`tinyvmm --help | head -1`) is not an error.
fn show(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(&anyhow::Error::new(error).context("standard output"), cli::EXIT_INTERNAL)
        }
        _ => ExitCode::SUCCESS,
    }
}

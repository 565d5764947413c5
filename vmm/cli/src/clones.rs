//! `--restore DIR --count N --name NAME`: N machines that go on from one snapshot, each a process in the background.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Write, stdout};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::snapshot::MEMORY;
use crate::{host, logger};

/// Exit code when the host's memory is not enough for all.
const EXIT_NO_MEMORY: u8 = 3;

/// Starts `count` machines as `config` describes one, a few at a time, and prints their names. An error: it is not known
/// how. The exit code is that of the first one that does not start.
///
/// Each may come to write to all memory that the snapshot has: none is started that the host would have no room for.
pub fn start(config: &Config, count: u32) -> Result<ExitCode> {
    let process = &config.process;
    let folder = process.snapshot.restore.as_ref().context("--count: it is for --restore DIR")?;
    ensure!(
        process.snapshot.hostname.is_none(),
        "--hostname: each of --count has its own name, leave it out"
    );
    let name =
        process.name.as_deref().context("--count: the machines need names, say --name NAME")?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let at_once = available_parallelism().map_or(1, usize::from);
    let names: Vec<_> = (1..=count).map(|number| format!("{name}-{number}")).collect();
    let each = memory_kib(folder);
    let mut started = 0;
    for some in names.chunks(at_once) {
        if let Some(lack) = host::available_kib().and_then(|has| lack(has, each, some.len())) {
            logger::print_message(format_args!(
                "--count: {started} of {count} machines run, {lack}: stop others, or say less than {count}"
            ));
            return Ok(ExitCode::from(EXIT_NO_MEMORY));
        }
        let start = |name: &String| -> Result<Child> {
            let args = args_of(std::env::args_os().skip(1), name);
            let mut command = Command::new(&program);
            Ok(command.args(args).stdin(Stdio::null()).spawn()?)
        };
        let children: Vec<_> = some.iter().map(start).collect();
        for (name, child) in some.iter().zip(children) {
            let status =
                child.and_then(|mut child| Ok(child.wait()?)).with_context(|| name.clone())?;
            if !status.success() {
                return Ok(ExitCode::from(
                    status.code().and_then(|code| code.try_into().ok()).unwrap_or(1),
                ));
            }
            // A reader that has gone away keeps no machine from being started.
            let _ = writeln!(stdout(), "{name}");
            started += 1;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the host lacks, with `available` KiB of memory, for `count` machines of `each` KiB.
fn lack(available: u64, each: u64, count: usize) -> Option<String> {
    let needed = each.saturating_mul(count as u64);
    let (has, needs) = (available >> 10, needed.div_ceil(1024));
    let lack = || format!("for the host has {has} MiB left and the next {count} may use {needs}");
    (available < needed).then(lack)
}

/// KiB of memory that the snapshot in `folder` has: what was ever touched. None, if it cannot be read, which the machines
/// report.
fn memory_kib(folder: &Path) -> u64 {
    fs::metadata(folder.join(MEMORY)).map_or(0, |file| file.blocks() / 2)
}

/// The arguments of the process of the machine `name`: this one's, in the background, and for one machine.
fn args_of(ours: impl Iterator<Item = OsString>, name: &str) -> Vec<OsString> {
    let mut args = Vec::new();
    let mut ours = ours;
    while let Some(arg) = ours.next() {
        let is = |flags: &[&str]| flags.iter().any(|flag| arg == OsStr::new(flag));
        let text = arg.to_string_lossy();
        if is(&["--name", "--count"]) {
            ours.next();
        } else if !["--name=", "--count=", "--detach"].iter().any(|flag| text.starts_with(flag))
            && !is(&["-d"])
        {
            args.push(arg);
        }
    }
    // A configuration file may say otherwise.
    args.extend(["--name", name, "--detach", "--count", "1"].map(OsString::from));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_has_no_room_for_is_not_started() {
        assert_eq!(lack(8 << 10, 4 << 10, 2), None);
        let lack = lack((8 << 10) - 1, 4 << 10, 2).unwrap();
        assert!(lack.contains("has 7 MiB") && lack.contains("next 2 may use 8"), "{lack}");
    }

    #[test]
    fn a_clone_has_the_arguments_of_all_but_for_its_name() {
        let ours =
            ["--restore", "a", "--name", "b", "-d", "--count=3", "--net", "user", "--detach=true"];
        let args = args_of(ours.into_iter().map(OsString::from), "b-2");
        let expected =
            ["--restore", "a", "--net", "user", "--name", "b-2", "--detach", "--count", "1"];
        assert_eq!(args, expected);
    }
}

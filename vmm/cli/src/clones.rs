//! `--restore DIR --count N --name NAME`: N machines that go on from one snapshot, each a process in the background.

use std::ffi::{OsStr, OsString};
use std::io::{Write, stdout};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};

use crate::config::Config;

/// Starts `count` machines as `config` describes one, a few at a time, and prints their names. An error: it is not known
/// how. The exit code is that of the first one that does not start.
pub fn start(config: &Config, count: u32) -> Result<ExitCode> {
    let process = &config.process;
    ensure!(process.snapshot.restore.is_some(), "--count: it is for --restore DIR");
    let name =
        process.name.as_deref().context("--count: the machines need names, say --name NAME")?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let at_once = available_parallelism().map_or(1, usize::from);
    let names: Vec<_> = (1..=count).map(|number| format!("{name}-{number}")).collect();
    for some in names.chunks(at_once) {
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
        }
    }
    Ok(ExitCode::SUCCESS)
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
    fn a_clone_has_the_arguments_of_all_but_for_its_name() {
        let ours =
            ["--restore", "a", "--name", "b", "-d", "--count=3", "--net", "user", "--detach=true"];
        let args = args_of(ours.into_iter().map(OsString::from), "b-2");
        let expected =
            ["--restore", "a", "--net", "user", "--name", "b-2", "--detach", "--count", "1"];
        assert_eq!(args, expected);
    }
}

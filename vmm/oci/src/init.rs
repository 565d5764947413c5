//! A container's process: it prepares what the machine is made of, waits for the start, and has `tinyvmm` run it.

use std::fs::File;
use std::io::{IsTerminal, PipeWriter, Read, Write, stdin};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use oci_spec::runtime::Spec;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{ioctl_tiocsctty, setsid};

use crate::container::Container;
use crate::{cgroup, machine, network, rootfs, steps, supervisor};

/// What is reported once it is ready.
pub const READY: &str = "ready";

/// The flags of what `create` starts.
#[derive(Args, Debug)]
pub struct Options {
    /// Descriptor for how it is
    #[arg(long)]
    report: i32,
    /// Be the first of a session, and have its terminal
    #[arg(long)]
    apart: bool,
    /// The container's ID
    id: String,
}

/// Runs it; its exit code is the machine's.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    // SAFETY: `create` has passed the descriptor on for us alone.
    let report = unsafe { OwnedFd::from_raw_fd(options.report) };
    let _ = fcntl_setfd(&report, FdFlags::CLOEXEC);
    let mut report = PipeWriter::from(report);
    let (container, spec, shared) = match prepare(root, options) {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = write!(report, "{error:#}");
            return Err(error);
        }
    };
    report.write_all(READY.as_bytes())?;
    drop(report);
    // Opening it waits for who writes, and nobody else does than `start`.
    File::open(container.start_file())?.read_exact(&mut [0])?;
    supervisor::run(machine(&container, &spec, &shared)?, &spec, &shared)
}

/// Enters where the container's processes are to be.
fn prepare(root: &Path, options: &Options) -> Result<(Container, Spec, PathBuf)> {
    if options.apart {
        setsid()?;
        if stdin().is_terminal() {
            ioctl_tiocsctty(stdin()).context("cannot take the terminal")?;
        }
    }
    let container = Container::find(root, &options.id)?;
    let spec = container.spec()?;
    cgroup::enter(&container.saved.cgroups)?;
    let shared = rootfs::enter(&spec, &container.saved.bundle, &container.folder)?;
    network::enter(&spec)?;
    Ok((container, spec, shared))
}

/// The machine's command.
fn machine(container: &Container, spec: &Spec, shared: &Path) -> Result<Command> {
    let network = network::connect(spec)?;
    let process = spec.process().as_ref().context("config.json: no process")?;
    let steps = steps::of_container(spec, network::steps_of(&network))?;
    let mut command = Command::new(machine::program());
    command.args(["--name", &container.machine()]).args(machine::flags(spec)?);
    command.args(network::flags(&network));
    let place = shared.to_str().context("the state's folder: not in UTF-8")?.replace(',', ",,");
    command.args(["--root-dir", &format!("{place},rw,container={}", rootfs::ROOT)]);
    command.arg("--").args(steps::command(steps, process)?);
    Ok(command)
}

//! A container's process: it prepares what the machine is made of, waits for the start, and has `tinyvmm` run it.

use std::fs::File;
use std::io::{PipeWriter, Read, Write, stdin};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use oci_spec::runtime::Spec;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{ioctl_tiocsctty, setsid};

use crate::container::Container;
use crate::network::Wanted;
use crate::{cgroup, machine, network, rootfs, steps, supervisor};

/// What is reported once it is ready.
pub const READY: &str = "ready";

/// The flags of what `create` starts.
#[derive(Args, Debug)]
pub struct Options {
    /// Descriptor for how it is
    #[arg(long)]
    report: i32,
    /// Be the first of a session
    #[arg(long)]
    apart: bool,
    /// Standard input is the session's terminal
    #[arg(long)]
    terminal: bool,
    /// The container's ID
    id: String,
}

/// Runs it; its exit code is the machine's.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    // SAFETY: `create` has passed the descriptor on for us alone.
    let report = unsafe { OwnedFd::from_raw_fd(options.report) };
    let _ = fcntl_setfd(&report, FdFlags::CLOEXEC);
    let mut report = PipeWriter::from(report);
    let Prepared { container, spec, shared, network, mut start } = match prepare(root, options) {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = write!(report, "{error:#}");
            return Err(error);
        }
    };
    report.write_all(READY.as_bytes())?;
    drop(report);
    // Nobody writes there but `start`.
    start.read_exact(&mut [0])?;
    drop(start);
    supervisor::run(machine(&container, &spec, &shared, &network)?, &spec, &shared)
}

/// What a container's process has when it is ready for the start.
struct Prepared {
    container: Container,
    spec: Spec,
    /// What the guest sees of the host.
    shared: PathBuf,
    network: Wanted,
    /// Has a byte once it is to start.
    start: File,
}

/// Enters where the container's processes are to be.
fn prepare(root: &Path, options: &Options) -> Result<Prepared> {
    if options.apart {
        setsid()?;
        if options.terminal {
            ioctl_tiocsctty(stdin()).context("cannot take the terminal")?;
        }
    }
    let container = Container::find(root, &options.id)?;
    let spec = container.spec()?;
    cgroup::enter(&container.saved.cgroups)?;
    let shared = rootfs::enter(&spec, &container.saved.bundle, &container.folder)?;
    let network = network::enter(&spec)?;
    supervisor::handle_signals()?;
    // Also for writing, so that opening it waits for nobody; `start` finds a reader from here on.
    let start = File::options().read(true).write(true).open(container.start_file())?;
    Ok(Prepared { container, spec, shared, network, start })
}

/// The machine's command.
fn machine(container: &Container, spec: &Spec, shared: &Path, wanted: &Wanted) -> Result<Command> {
    let network = network::connect(wanted)?;
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

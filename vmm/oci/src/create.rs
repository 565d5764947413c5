//! `create`: a container's process, which waits for `start`, is the child of who has called us; so its exit status is the
//! engine's to collect, and its streams are those that we have.

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::container::{self, Container, Saved, started_at};
use crate::{cgroup, commands, console, hooks, machine, rootfs, steps};

/// The flags of `create` and `run`.
#[derive(Args, Debug)]
pub struct Options {
    /// The container's folder, with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,

    /// File for the number of the container's process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Socket that gets the container's terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,

    /// Of `run`: do not wait for the end
    #[arg(long, short)]
    detach: bool,

    /// Of `run`: do not delete it at its end
    #[arg(long)]
    keep: bool,

    /// Accepted, for engines say it: a machine has a root of its own in any case
    #[arg(long)]
    no_pivot: bool,

    /// Accepted, for engines say it: keys are the guest's
    #[arg(long)]
    no_new_keyring: bool,

    /// Descriptors to pass on besides the standard ones: a guest can have none
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,

    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,
}

/// Refuses what a machine cannot have, before anything is made.
fn check(spec: &Spec, bundle: &Path, options: &Options) -> Result<()> {
    ensure!(options.preserve_fds == 0, "--preserve-fds: a guest has no descriptors of the host");
    let linux = spec.linux().as_ref();
    let maps = linux.and_then(|linux| linux.uid_mappings().as_ref());
    ensure!(
        maps.is_none_or(Vec::is_empty),
        "a namespace of users: the guest's users are apart from the host's in any case, leave it out"
    );
    hooks::check(spec)?;
    rootfs::root(spec, bundle)?;
    machine::flags(spec)?;
    // All that does not depend on the network, as it will be.
    let process = spec.process().as_ref().context("config.json: no process")?;
    steps::command(steps::of_container(spec, &[])?, process)?;
    let terminal = process.terminal() == Some(true);
    ensure!(
        terminal || options.console_socket.is_none(),
        "--console-socket: the process has no terminal"
    );
    Ok(())
}

/// Creates a container.
pub fn create(root: &Path, systemd: bool, options: &Options) -> Result<()> {
    options.prepare(root, systemd, true).map(drop)
}

/// Creates a container, runs it to its end, and deletes it.
pub fn run(root: &Path, systemd: bool, options: &Options) -> Result<ExitCode> {
    let is_apart = options.detach || options.console_socket.is_some();
    let mut process = options.prepare(root, systemd, is_apart)?;
    commands::start(root, &options.id)?;
    if options.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let status = process.wait()?;
    if !options.keep {
        commands::remove(&Container::find(root, &options.id)?)?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(137))) // ended by us or another, with SIGKILL
}

impl Options {
    /// Makes the container and its process, up to the point where that waits for the start.
    fn prepare(&self, root: &Path, systemd: bool, is_apart: bool) -> Result<Child> {
        let bundle = fs::canonicalize(&self.bundle)
            .with_context(|| format!("--bundle {}", self.bundle.display()))?;
        let spec = container::spec(&bundle)?;
        check(&spec, &bundle, self)?;
        let saved = Saved {
            bundle,
            process: None,
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
            cgroups: Vec::new(),
        };
        let mut container = Container::new(root, &self.id, saved)?;
        let made = self.make(&mut container, root, &spec, systemd, is_apart);
        if made.is_err() {
            cgroup::remove(&container.saved.cgroups);
            let _ = container.forget();
        }
        made
    }

    fn make(
        &self,
        container: &mut Container,
        root: &Path,
        spec: &Spec,
        systemd: bool,
        is_apart: bool,
    ) -> Result<Child> {
        container.saved.cgroups = cgroup::make(spec, systemd)?;
        container.save()?;
        let start = container.start_file();
        mknodat(CWD, &start, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let process = spec.process().as_ref().context("config.json: no process")?;
        let socket = self.console_socket.as_deref();
        let terminal = socket.map(|socket| console::open(process, socket)).transpose()?;
        let (mut child, news) = spawn(root, &container.id, terminal, is_apart)?;
        let pid = child.id() as i32;
        container.saved.process = started_at(pid).map(|started| (pid, started));
        let ready = container.save().and_then(|()| await_ready(news)).and_then(|()| {
            if let Some(path) = &self.pid_file {
                fs::write(path, pid.to_string()).with_context(|| path.display().to_string())?;
            }
            let state = commands::described(container).to_string();
            let hooks = spec.hooks().as_ref();
            hooks::run(hooks.and_then(|hooks| prestart(hooks)), &state)?;
            hooks::run(hooks.and_then(|hooks| hooks.create_runtime().as_ref()), &state)
        });
        match ready {
            Ok(()) => Ok(child),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

#[allow(deprecated, reason = "engines still write them")]
fn prestart(hooks: &oci_spec::runtime::Hooks) -> Option<&Vec<oci_spec::runtime::Hook>> {
    hooks.prestart().as_ref()
}

/// Starts the container's process, with the terminal instead of our streams. Returns it, and where it says how it is.
fn spawn(
    root: &Path,
    id: &str,
    terminal: Option<OwnedFd>,
    is_apart: bool,
) -> Result<(Child, PipeReader)> {
    let (news, report) = std::io::pipe()?;
    fcntl_setfd(&report, FdFlags::empty())?; // inherited
    let mut command = Command::new("/proc/self/exe");
    command.arg("--root").arg(root).args(["init", "--report"]);
    command.arg(report.as_raw_fd().to_string()).args(is_apart.then_some("--apart"));
    command.args(terminal.is_some().then_some("--terminal")).arg(id);
    if let Some(terminal) = terminal {
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?);
        command.stderr(Stdio::from(terminal));
    }
    // SAFETY: this process has one thread; only those that it starts are in the namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }
        .context("cannot make a namespace of processes")?;
    Ok((command.spawn().context("cannot start the container's process")?, news))
}

/// Waits until the process is ready for the start.
fn await_ready(mut news: PipeReader) -> Result<()> {
    let mut text = String::new();
    news.read_to_string(&mut text)?;
    match text.as_str() {
        crate::init::READY => Ok(()),
        "" => bail!("the container's process has ended before it was ready"),
        text => bail!("{text}"),
    }
}

//! What engines do with a container that there is.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::container::{self, Container, Status};
use crate::{cgroup, hooks, machine, rootfs, supervisor, words};

/// The version of the specification that config.json may have, and that we write.
const VERSION: &str = "1.2.0";
/// How long a machine that was killed may take to be gone: tries, and their interval.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(10);

/// The flags of `kill`.
#[derive(Args, Debug)]
pub struct Kill {
    /// Accepted, for engines say it: a guest's processes end with its machine
    #[arg(long, short)]
    all: bool,

    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,

    /// A signal's name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    signal: String,
}

/// The flags of `delete`.
#[derive(Args, Debug)]
pub struct Delete {
    /// End it first if it runs, and do nothing if there is none
    #[arg(long, short)]
    force: bool,

    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,
}

/// The flags of `ps`.
#[derive(Args, Debug)]
pub struct Ps {
    /// How they are printed
    #[arg(long, short, default_value = "table")]
    format: Format,

    /// The container's ID
    #[arg(value_name = "ID", value_parser = container::id)]
    id: String,
}

/// The flags of `list`.
#[derive(Args, Debug)]
pub struct List {
    /// How they are printed
    #[arg(long, short, default_value = "table")]
    format: Format,

    /// Print IDs only
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A container as JSON (runtime.md, "State").
pub fn described(container: &Container) -> Value {
    let annotations = container.spec().ok().and_then(|spec| spec.annotations().clone());
    json!({
        "ociVersion": VERSION,
        "id": container.id,
        "status": container.status().name(),
        "pid": container.pid().map_or(0, Pid::as_raw_pid),
        "bundle": container.saved.bundle,
        "annotations": annotations.unwrap_or_default(),
    })
}

/// Starts a container.
pub fn start(root: &Path, id: &str) -> Result<()> {
    let container = Container::find(root, id)?;
    let status = container.status();
    // Engines look for "created".
    ensure!(
        status == Status::Created,
        "cannot start a container that is {}, not created",
        status.name()
    );
    let path = container.start_file();
    let mut options = OpenOptions::new();
    // O_NONBLOCK: it fails if nobody waits, rather than to wait.
    let mut start: File = options
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(&path)
        .with_context(|| format!("container {id}: its process does not wait for the start"))?;
    fs::remove_file(&path)?;
    start.write_all(&[1])?;
    let spec = container.spec()?;
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    hooks::run(hooks, &described(&container).to_string())
}

/// Prints what a container is.
pub fn state(root: &Path, id: &str) -> Result<()> {
    println!("{:#}", described(&Container::find(root, id)?));
    Ok(())
}

/// Sends a signal.
pub fn kill(root: &Path, options: &Kill) -> Result<()> {
    let signal = words::signal(&options.signal)?;
    let container = Container::find(root, &options.id)?;
    // Engines compare these words with runc's.
    let Some(pid) = container.pid() else { bail!("container not running") };
    if signal == 0 {
        return Ok(());
    }
    if container.status() == Status::Created {
        // The first of its namespace, which nothing else ends before it handles signals.
        return kill_process(pid, Signal::KILL).context("cannot end it");
    }
    // The machine passes it on to the guest's process, or ends with it.
    let Some(signal) = Signal::from_named_raw(signal) else {
        bail!("signal {signal}: a machine does not pass it on")
    };
    let passes = signal == Signal::KILL || supervisor::SIGNALS.contains(&signal);
    ensure!(passes, "signal {}: a machine does not pass it on", options.signal);
    kill_process(pid, signal).context("cannot send it")
}

/// Removes a container.
pub fn delete(root: &Path, options: &Delete) -> Result<()> {
    let container = match Container::find(root, &options.id) {
        Err(_) if options.force && !root.join(&options.id).exists() => return Ok(()),
        Err(_) if options.force => return Ok(fs::remove_dir_all(root.join(&options.id))?),
        container => container?,
    };
    if let Some(pid) = container.pid() {
        let may = options.force || container.status() == Status::Created;
        ensure!(
            may,
            "container {} is not stopped: it is {}",
            container.id,
            container.status().name()
        );
        kill_process(pid, Signal::KILL).context("cannot end it")?;
        for _ in 0..TRIES {
            if container.pid().is_none() {
                break;
            }
            thread::sleep(PAUSE);
        }
        ensure!(container.pid().is_none(), "container {}: its process does not end", container.id);
    }
    remove(&container)
}

/// Removes what is left of one that has ended.
pub fn remove(container: &Container) -> Result<()> {
    cgroup::remove(&container.saved.cgroups);
    // What a machine that was killed has left; there is nothing otherwise.
    let mut clear = tinyvmm(container);
    let _ = clear
        .args(["stop", "--ended", &container.machine()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // An engine may have removed the bundle.
    let spec = container.spec().ok();
    if let Some(spec) = &spec {
        rootfs::tidy(spec, &container.saved.bundle);
    }
    container.forget()?;
    let hooks = spec.as_ref().and_then(|spec| spec.hooks().as_ref());
    let done = hooks::run(
        hooks.and_then(|hooks| hooks.poststop().as_ref()),
        &described(container).to_string(),
    );
    if let Err(error) = done {
        // It is gone whatever they say (runtime.md, "Lifecycle").
        eprintln!("tinyvmm-oci: {error:#}");
    }
    Ok(())
}

/// Prints the processes of a container.
pub fn ps(root: &Path, options: &Ps) -> Result<()> {
    let container = Container::find(root, &options.id)?;
    let group = |folder: &PathBuf| fs::read_to_string(folder.join("cgroup.procs")).ok();
    let group = container.saved.cgroups.iter().find_map(group).unwrap_or_default();
    let mut pids: Vec<i32> = group.lines().filter_map(|line| line.parse().ok()).collect();
    if pids.is_empty() {
        pids.extend(container.pid().map(Pid::as_raw_pid));
    }
    match options.format {
        Format::Json => println!("{}", json!(pids)),
        Format::Table => {
            println!("PID");
            pids.iter().for_each(|pid| println!("{pid}"));
        }
    }
    Ok(())
}

/// Has the machine stand still or go on.
pub fn pause(root: &Path, id: &str, stands: bool) -> Result<()> {
    let container = Container::find(root, id)?;
    let (from, word) = if stands { (Status::Running, "pause") } else { (Status::Paused, "resume") };
    let status = container.status();
    ensure!(status == from, "container {id} is {}: it has to be {}", status.name(), from.name());
    await_machine(&container)?;
    let mut command = tinyvmm(&container);
    command.args(["ctl", &container.machine(), word]).stdout(Stdio::null());
    ensure!(command.status()?.success(), "container {id}: cannot {word} its machine");
    let path = container.paused_file();
    match stands {
        true => fs::write(path, "")?,
        false => fs::remove_file(path)?,
    }
    Ok(())
}

/// Waits until `tinyvmm` knows the machine: a container runs from its start on.
pub fn await_machine(container: &Container) -> Result<()> {
    for _ in 0..TRIES {
        ensure!(container.pid().is_some(), "container {} has ended", container.id);
        let known = tinyvmm(container).args(["ps", "--json"]).stderr(Stdio::null()).output();
        let known: Value = serde_json::from_slice(&known.context("cannot start tinyvmm")?.stdout)?;
        let name = container.machine();
        if known.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == *name)) {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    bail!("container {}: its machine does not start", container.id)
}

/// `tinyvmm`, which finds the container's machine.
pub fn tinyvmm(container: &Container) -> Command {
    let mut command = Command::new(machine::program());
    match &container.saved.runtime_dir {
        Some(folder) => command.env("XDG_RUNTIME_DIR", folder),
        None => command.env_remove("XDG_RUNTIME_DIR"),
    };
    command
}

/// Prints the containers.
pub fn list(root: &Path, options: &List) -> Result<()> {
    let mut ids: Vec<_> = fs::read_dir(root)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort();
    // One that is being deleted may be gone by now.
    let all: Vec<_> = ids.iter().filter_map(|id| Container::find(root, id).ok()).collect();
    if options.quiet {
        all.iter().for_each(|container| println!("{}", container.id));
    } else if options.format == Format::Json {
        println!("{}", Value::Array(all.iter().map(described).collect()));
    } else {
        println!("{:<32} {:>8} {:<8} BUNDLE", "ID", "PID", "STATUS");
        for container in &all {
            let pid = container.pid().map_or(0, Pid::as_raw_pid);
            let (status, bundle) = (container.status().name(), container.saved.bundle.display());
            println!("{:<32} {pid:>8} {status:<8} {bundle}", container.id);
        }
    }
    Ok(())
}

/// Prints what this runtime can do (features.md).
pub fn features() -> Result<()> {
    let all = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": ["bind", "rbind", "ro", "rro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "strictatime", "sync"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": words::all_capabilities(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": false},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
        },
        "annotations": {"io.tinyvmm.version": env!("CARGO_PKG_VERSION")},
    });
    println!("{all:#}");
    Ok(())
}

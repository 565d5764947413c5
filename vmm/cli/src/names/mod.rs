//! Machines with names. Each has a folder with the sockets of its API, its console and its vsock, its console's log, and
//! what it is.
//!
//! The machine's process holds a lock on that folder's description. A folder without one was left by a process that was
//! killed, or is kept because a detached machine has failed; the next machine of its name takes it over.

mod detach;
mod hub;
mod place;
pub mod ring;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tinyvmm::config::{MachineConfig, NetConfig, VsockConfig};
use tinyvmm::layout;
use tinyvmm::random;
use tinyvmm::worker::Worker;

pub use self::detach::{detach, reached};
use self::hub::Hub;
use crate::config::{Config, DEFAULT_ID, ProcessConfig, machine_name};
use crate::inbox::End;
use crate::jail::Jail;

/// Most bytes of a description.
const MAX_BYTES: u64 = 64 << 10;

/// What a machine is, as its folder has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory at the start, in bytes.
    pub memory: u64,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<String>,
    /// The start of its process, in seconds since 1970.
    pub started: u64,
    /// The socket of its vsock device, if that is not in its folder.
    pub vsock: Option<PathBuf>,
    /// How it has ended.
    pub end: Option<String>,
}

/// Gives a machine that is to be detached a name, and one that has a name the sockets in its folder. Returns the name if
/// it is new.
pub fn adopt(config: &mut Config) -> Result<Option<String>> {
    let (machine, process) = (&mut config.machine.0, &mut config.process);
    let is_new = process.detach && process.name.is_none();
    if is_new {
        process.name = Some(random::bytes::<4>()?.map(|byte| format!("{byte:02x}")).concat());
    }
    if let Some(name) = &process.name {
        let folder = place::all().join(name);
        process.api_sock = Some(folder.join(place::API));
        // A machine of a snapshot has what that says.
        let is_new = process.snapshot.restore.is_none();
        if is_new && machine.vsock.is_none() && machine.virtio_devices() < layout::MAX_VIRTIO {
            machine.vsock = Some(VsockConfig::new(None));
        }
        if process.id == DEFAULT_ID {
            process.id.clone_from(name);
        }
    }
    Ok(process.name.clone().filter(|_| is_new))
}

/// Where a machine with a name has its vsock, if no other place is said.
pub fn vsock(process: &ProcessConfig) -> Option<PathBuf> {
    process.name.as_ref().map(|name| place::all().join(name).join(place::VSOCK))
}

/// The folder of the machine that this process runs. Dropping it removes the folder.
pub struct Named {
    all: Rc<File>,
    name: String,
    /// Locked.
    file: File,
    description: Description,
    /// The console's end of the hub's socket.
    copy: File,
    hub: Option<Hub>,
    thread: Option<Worker<Hub>>,
    /// The folder stays if the guest fails.
    is_detached: bool,
    stays: bool,
}

impl Named {
    /// Takes the folder that `config` names, if it names one.
    pub fn open(config: &Config, jail: &Jail) -> Result<Option<Self>> {
        let Some(name) = &config.process.name else { return Ok(None) };
        let named = || format!("--name {name}");
        let path = place::all();
        ensure!(
            path.join(name).as_os_str().len() <= place::MAX_PATH,
            "--name {name}: {} is too long for sockets in it, set XDG_RUNTIME_DIR to a shorter path",
            path.display()
        );
        let all = Rc::new(place::make(&path).with_context(named)?);
        let file = place::take(&path, name).with_context(named)?;
        let hub = Hub::open(&path.join(name));
        let (hub, copy) = hub.inspect_err(|_| place::remove(&all, name)).with_context(named)?;
        jail.keep_names(all.clone());
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let started = started.unwrap_or_default().as_secs();
        let mut this = Self {
            all,
            name: name.clone(),
            file,
            description: Description { started, ..Description::default() },
            copy,
            hub: Some(hub),
            thread: None,
            is_detached: config.process.detach,
            stays: false,
        };
        this.describe(&config.machine.0)?;
        Ok(Some(this))
    }

    /// A socket for the console's copy.
    pub fn copy(&self) -> Result<File> {
        Ok(self.copy.try_clone()?)
    }

    fn describe(&mut self, machine: &MachineConfig) -> Result<()> {
        (self.description.cpus, self.description.memory) =
            (machine.cpus.count(), machine.mem.bytes());
        let ports = machine.net.iter().flat_map(NetConfig::published);
        let vsock = machine.vsock.as_ref().and_then(|vsock| vsock.path.as_deref());
        self.description.vsock = vsock.map(std::path::absolute).transpose()?;
        self.description.ports = ports.map(ToString::to_string).collect();
        self.write()
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_string(&self.description)? + "\n";
        // Readers take the first value of the file: what an earlier text leaves behind it is cut off later.
        self.file.write_all_at(text.as_bytes(), 0)?;
        Ok(self.file.set_len(text.len() as u64)?)
    }

    /// Describes the machine that is about to run, and starts the thread that serves its console. The API's thread has
    /// started, so new threads get a filter.
    pub fn serve(&mut self, machine: &MachineConfig) -> Result<()> {
        self.describe(machine).context("cannot describe the machine")?;
        self.thread = self.hub.take().map(Worker::spawn).transpose()?;
        Ok(())
    }

    /// Has the folder stay if that helps to find out why a detached machine has ended like this.
    pub fn ended(&mut self, end: &End) {
        self.thread = None;
        let asked_for = matches!(end, End::Signal | End::Api | End::Quit);
        if self.is_detached && !asked_for && end.exit_code() != 0 {
            self.description.end = Some(end.to_string());
            self.stays = self.write().is_ok();
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.thread = None;
        if !self.stays {
            place::remove(&self.all, &self.name);
        }
    }
}

/// A machine's folder, as others see it.
pub struct Known {
    /// The machine's name.
    pub name: String,
    folder: PathBuf,
    /// What it is.
    pub description: Description,
    /// Its process runs.
    pub lives: bool,
}

impl Known {
    fn open(folder: PathBuf, name: &str) -> Result<Option<Self>> {
        let path = folder.join(place::DESCRIPTION);
        let file = match place::file(&path, false) {
            Err(error)
                if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) =>
            {
                return Ok(None);
            }
            file => file.with_context(|| path.display().to_string())?,
        };
        let lives = matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock));
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
        // One that is just being written, or is damaged, says nothing.
        let description = values.next().and_then(Result::ok).unwrap_or_default();
        Ok(Some(Self { name: name.to_owned(), folder, description, lives }))
    }

    /// The socket of its API.
    pub fn api(&self) -> PathBuf {
        self.folder.join(place::API)
    }

    /// The socket of its vsock device.
    pub fn vsock(&self) -> PathBuf {
        let own = || self.folder.join(place::VSOCK);
        self.description.vsock.clone().unwrap_or_else(own)
    }

    /// A connection to its console.
    pub fn attach(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.folder.join(place::CONSOLE));
        stream.with_context(|| format!("{}: cannot attach", self.name))
    }

    /// Its console's log.
    pub fn log(&self) -> Result<File> {
        let file = place::file(&self.folder.join(place::LOG), false);
        file.with_context(|| format!("{}: no log", self.name))
    }

    /// Removes what a machine that does not run has left.
    pub fn clear(&self) -> Result<()> {
        let path = place::all();
        if let Ok(_lock) = place::take(&path, &self.name) {
            place::remove(&place::open(&path)?, &self.name);
        }
        Ok(())
    }
}

/// The folders of this user's machines, sorted by name.
pub fn all() -> Result<Vec<Known>> {
    let path = place::all();
    if !path.try_exists()? {
        return Ok(Vec::new());
    }
    place::open(&path)?;
    let mut names: Vec<_> = std::fs::read_dir(&path)?
        .filter_map(|entry| machine_name(entry.ok()?.file_name().to_str()?).ok())
        .collect();
    names.sort();
    let known = |name: String| match Known::open(path.join(&name), &name) {
        Ok(known) => known,
        Err(error) => {
            log::warn!("machine {name}: {error:#}");
            None
        }
    };
    Ok(names.into_iter().filter_map(known).collect())
}

/// The folder of the machine `name`.
pub fn find(name: &str) -> Result<Known> {
    let path = place::all();
    let folder = path.join(name);
    if folder.symlink_metadata().is_ok() {
        place::open(&path)?;
        place::open(&folder)?;
    }
    let known = Known::open(folder, name)?;
    known.with_context(|| format!("{name}: there is no such machine, tinyvmm ps lists them"))
}

/// The socket of the API that `text` names: a machine's name, or the path of a socket.
pub fn socket(text: &Path) -> Result<PathBuf> {
    let Some(name) = text.to_str().filter(|text| machine_name(text).is_ok()) else {
        return Ok(text.to_owned());
    };
    match find(name) {
        Ok(known) => Ok(known.api()),
        Err(_) if text.exists() => Ok(text.to_owned()),
        Err(error) => Err(error),
    }
}

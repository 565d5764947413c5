//! Machines that are made of a snapshot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tinyvmm::arch::saved::Clocks;
use tinyvmm::config::{Mac, MachineConfig, Overlay};
use tinyvmm::disk_image::DiskImage;
use tinyvmm::machine::{Renewal, SavedMachine, Start};
use tinyvmm::memory::saved::Marker;
use tinyvmm::memory::{self, GuestRam};
use tinyvmm::worker::Worker;

use super::{
    Base, DESCRIPTION, FileIdentity, MEMORY, MOST_BYTES, PageServer, STATE, Snapshot, image, layer,
};
use crate::config::{Clock, Config, Identity, TemplateRole};
use crate::guard::Guard;
use crate::{disks, net};

/// The number of virtio-vsock (virtio 1.2, 5).
const VIRTIO_ID_VSOCK: u32 = 19;

/// A snapshot that was read. Its other files are opened with those of the machine.
pub struct Restored {
    state: SavedMachine,
    renewal: Renewal,
    memory: MemoryPlace,
    markers: Vec<Marker>,
    /// The layer of each disk, to be copied.
    layers: Vec<Option<PathBuf>>,
    /// The addresses that the guest's cards have.
    macs: Vec<Option<Mac>>,
}

/// Where the memory of a snapshot is.
pub enum MemoryPlace {
    /// In this file.
    File(PathBuf),
    /// With the process that listens at this socket.
    Server(PathBuf),
}

impl Restored {
    /// Reads the snapshot that `config` names, if it names one, and makes `config` that of its machine.
    pub fn adopt(config: &mut Config) -> Result<Option<Self>> {
        let flags = &config.process.snapshot;
        let renewal = Renewal {
            identity: flags.identity == Identity::New,
            clocks: if flags.clock == Clock::Host { Clocks::FollowHost } else { Clocks::Continue },
        };
        let Some(folder) = flags.restore.clone() else {
            ensure!(
                renewal == Renewal::default() && flags.hostname.is_none(),
                "--identity, --hostname and --clock: they are for --restore DIR"
            );
            return Ok(None);
        };
        let goes_on = config.process.command.is_empty() || flags.role == TemplateRole::Uses;
        ensure!(
            goes_on && config.process.config_file.is_none(),
            "--restore: the guest is in the middle of its work, leave COMMAND and --config-file out"
        );
        let named = || format!("--restore {}", folder.display());
        let snapshot =
            read(&folder.join(STATE), Some(&folder.join(DESCRIPTION))).with_context(named)?;
        ensure!(
            renewal.identity || flags.hostname.is_none(),
            "--hostname: the guest keeps its name with --identity keep, leave one out"
        );
        let memory = MemoryPlace::File(folder.join(MEMORY));
        let named_cards = config.machine.0.net.iter().map(|card| card.mac).collect::<Vec<_>>();
        let restored =
            Self::new(snapshot, &folder.join(STATE), memory, renewal, &mut config.machine.0)
                .with_context(named)?;
        if renewal.identity {
            let cards = config.machine.0.net.iter_mut().enumerate();
            cards.for_each(|(at, card)| card.mac = named_cards.get(at).copied().flatten());
            net::settle(&mut config.machine.0, config.process.name.as_deref())?;
        }
        config.process.no_reboot = true;
        Ok(Some(restored))
    }

    /// `snapshot`, which was read from `state_path`. Makes `machine`, which names what is not as it was, the machine to be
    /// built.
    pub fn new(
        snapshot: Snapshot,
        state_path: &Path,
        memory: MemoryPlace,
        renewal: Renewal,
        machine: &mut MachineConfig,
    ) -> Result<Self> {
        let Snapshot { machine: saved, disks, marker, bases: mut markers, state, .. } = snapshot;
        markers.extend(marker);
        let mut next = saved;
        ensure_only_places(machine)?;
        let layers = match machine.disk.is_empty() {
            true => layers_over(&mut next, &disks, state_path)?,
            false => {
                exchange(&mut next.disk, &mut machine.disk, "--disk", "disks")?;
                next.disk.iter().map(|_| None).collect()
            }
        };
        let cards = next.net.clone();
        let macs = cards.iter().map(|card| card.mac).collect();
        if !machine.net.is_empty() {
            exchange(&mut next.net, &mut machine.net, "--net", "network cards")?;
        }
        for (card, was) in next.net.iter_mut().zip(cards) {
            // What the guest's driver knows stays.
            (card.mac, card.mtu) = (card.mac.or(was.mac), was.mtu);
        }
        if let Some(path) = machine.vsock.take().and_then(|vsock| vsock.path) {
            let vsock = next.vsock.as_mut();
            vsock.context("--vsock: the snapshot has no such device, leave it out")?.path =
                Some(path);
        }
        if renewal.identity {
            next.uuid = None;
        }
        *machine = next;
        Ok(Self { state, renewal, memory, markers, layers, macs })
    }

    /// Whether the machine becomes another one than that of the snapshot.
    pub fn is_renewed(&self) -> bool {
        self.renewal.identity
    }

    /// The addresses that the guest's cards have.
    pub fn macs(&self) -> &[Option<Mac>] {
        &self.macs
    }

    /// Whether an agent in the guest could listen.
    pub fn has_vsock_driver(&self) -> bool {
        self.state.has_driver(VIRTIO_ID_VSOCK)
    }

    /// Opens the disks of `machine`, which is made of it.
    pub fn open_disks(&self, machine: &MachineConfig) -> Result<Vec<DiskImage>> {
        disks::ensure_apart(&machine.disk)?;
        let disks = machine.disk.iter().zip(&self.layers);
        disks
            .map(|(disk, layer)| {
                let layer = layer.as_deref().map(open).transpose()?;
                disks::open_with(disk, layer.as_ref())
            })
            .collect()
    }

    /// What the machine starts with, and its memory.
    pub fn start(self) -> Result<(Start, SavedMemory)> {
        let source = match &self.memory {
            MemoryPlace::File(path) => MemorySource::File(open(path)?),
            MemoryPlace::Server(path) => MemorySource::Server(PageServer::connect(path)?),
        };
        let memory = SavedMemory { source, markers: self.markers };
        Ok((Start::Saved(Box::new(self.state), self.renewal), memory))
    }
}

/// The memory of a machine that was saved.
pub struct SavedMemory {
    source: MemorySource,
    markers: Vec<Marker>,
}

/// Guest RAM with what was saved.
pub struct FilledMemory {
    /// What its file ends with.
    pub base: Base,
    /// Who provides its pages.
    _server: Option<(PageServer, Worker<Guard>)>,
}

enum MemorySource {
    File(File),
    Server(PageServer),
}

impl SavedMemory {
    /// Has `ram`, which is new, have its contents, for as long as there is what is returned. `deadline` is when the machine
    /// is to end.
    pub fn fill(
        self,
        ram: &GuestRam,
        hugepages: bool,
        deadline: Option<Instant>,
    ) -> Result<FilledMemory> {
        let _server = match self.source {
            MemorySource::File(file) => {
                let filled = memory::saved::restore(ram, &file, &self.markers, hugepages);
                filled.context("--restore: memory")?;
                None
            }
            MemorySource::Server(server) => {
                let guard = Guard::start(deadline)?;
                server.serve(ram, hugepages)?;
                Some((server, guard))
            }
        };
        Ok(FilledMemory { base: Base::new(self.markers), _server })
    }
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    ensure!(file.metadata()?.is_file(), "{}: it is no file", path.display());
    Ok(file)
}

fn bytes_of(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The version of the format of a snapshot's state, also of one that this tinyvmm cannot read.
#[cfg(feature = "api")]
pub fn version_of(state: &Path) -> Result<u32> {
    let bytes = bytes_of(state)?;
    Ok(super::format::version(&bytes).with_context(|| state.display().to_string())?.0)
}

/// Reads the file of a snapshot's state; a description beside it has to be the same.
pub fn read(state: &Path, description: Option<&Path>) -> Result<Snapshot> {
    let named = |path: &Path| path.display().to_string();
    let snapshot = Snapshot::from_bytes(&bytes_of(state)?).with_context(|| named(state))?;
    if let Some(path) = description {
        let described = serde_json::from_slice(&bytes_of(path)?);
        let described: MachineConfig = described.with_context(|| named(path))?;
        ensure!(
            described == snapshot.machine,
            "{}: it is not as the snapshot was made; nothing of a machine can be changed there",
            named(path)
        );
    }
    Ok(snapshot)
}

/// The machine is what it was: only what its disks and cards lead to can be named.
fn ensure_only_places(machine: &MachineConfig) -> Result<()> {
    let [given, default] = [machine, &MachineConfig::default()].map(serde_json::to_value);
    let (given, default) = (given?, default?);
    let keys = given.as_object().into_iter().flat_map(|object| object.keys());
    let mut changed = keys.filter(|key| given[key.as_str()] != default[key.as_str()]);
    match changed.find(|key| !["disk", "net", "vsock"].contains(&key.as_str())) {
        Some(key) => bail!("the snapshot says what the machine has: leave --{key} out"),
        None => Ok(()),
    }
}

/// Replaces all of `saved` by what was `given` instead.
fn exchange<T>(saved: &mut Vec<T>, given: &mut Vec<T>, flag: &str, what: &str) -> Result<()> {
    let (known, named) = (saved.len(), given.len());
    ensure!(known == named, "{flag}: the snapshot has {known} {what}, name all of them or none");
    *saved = std::mem::take(given);
    Ok(())
}

/// Has each disk of `machine` that its guest writes be one with a layer of its own, which starts as the snapshot's.
fn layers_over(
    machine: &mut MachineConfig,
    files: &[Vec<FileIdentity>],
    state: &Path,
) -> Result<Vec<Option<PathBuf>>> {
    ensure!(
        machine.disk.len() == files.len(),
        "it is damaged: it has the files of {} disks",
        files.len()
    );
    let beside = |name: String| {
        let mut path = state.as_os_str().to_owned();
        path.push(name);
        PathBuf::from(path)
    };
    let mut layers = Vec::new();
    for (index, (disk, files)) in machine.disk.iter_mut().zip(files).enumerate() {
        let copy = beside(image(index));
        match copy.try_exists()? {
            true => disk.path = std::path::absolute(copy)?,
            false => files.iter().try_for_each(FileIdentity::check)?,
        }
        layers.push(disk.overlay.as_ref().map(|_| beside(layer(index))));
        if !disk.readonly {
            disk.overlay = Some(Overlay::Temporary);
        }
    }
    Ok(layers)
}

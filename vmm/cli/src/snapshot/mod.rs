//! Snapshots: a folder with what a machine was, of which machines are made that go on from there.
//!
//! `state` has the machine's description and all of its state but the memory, behind a line with the version of the
//! format and one with a checksum. `memory` is guest RAM, a sparse file. `state.disk0` and so on are the layers that took
//! what the guest wrote, `state.image0` and so on copies of the disks, if there are any. `machine.json` is the description for people.

mod format;
mod page_server;
mod restore;
#[cfg(feature = "api")]
mod take;

use std::cell::RefCell;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use tinyvmm::config::MachineConfig;
use tinyvmm::machine::SavedMachine;
use tinyvmm::memory::GuestRam;
use tinyvmm::memory::saved::Marker;

pub use self::format::{MOST_BYTES, VERSION};
pub use self::page_server::PageServer;
#[cfg(feature = "api")]
pub use self::restore::version_of;
pub use self::restore::{FilledMemory, MemoryPlace, Restored, SavedMemory, read};
#[cfg(feature = "api")]
pub use self::take::take;

/// The files of a snapshot.
pub const STATE: &str = "state";
/// Guest RAM.
pub const MEMORY: &str = "memory";
/// The description for people.
pub const DESCRIPTION: &str = "machine.json";

/// What a machine was built of, for a snapshot of it.
pub struct Subject<'a> {
    /// The host's KVM.
    pub kvm: &'a Kvm,
    /// Its description, with all that was left to chance.
    pub config: &'a MachineConfig,
    /// Its memory.
    pub ram: &'a GuestRam,
    /// Where this process was started: what paths are relative to.
    pub folder: &'a Path,
    /// The names of its network cards.
    pub cards: Vec<String>,
    /// Of a machine that was made of a snapshot.
    pub base: Option<&'a Base>,
}

/// What is at the end of the file of memory that a Diff has to be copied over: that of the last Full snapshot of a machine,
/// or of the one that it was made of.
pub type Base = RefCell<Vec<Marker>>;

/// What the file `state` has.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    /// The version of tinyvmm that wrote it.
    tinyvmm: String,
    machine: MachineConfig,
    /// The names of its network cards, for clients of the API.
    cards: Vec<String>,
    /// The files of each disk: its own, and that of a layer with a name.
    disks: Vec<Vec<FileIdentity>>,
    /// What the file `memory` ends with; none in version 1.
    #[serde(default)]
    marker: Option<Marker>,
    /// Of a Diff, what is before that: the markers of the files that its `memory` is to be copied over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bases: Vec<Marker>,
    state: SavedMachine,
}

impl Snapshot {
    /// The machine that was saved.
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// The names of its network cards.
    pub fn cards(&self) -> &[String] {
        &self.cards
    }
}

/// By what a file is known to be as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    path: PathBuf,
    size: u64,
    /// Seconds and nanoseconds since 1970 of the last change.
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(path: PathBuf, status: &Metadata) -> Self {
        // A device's file has no time of its contents.
        let changed = if status.is_file() { (status.mtime(), status.mtime_nsec()) } else { (0, 0) };
        Self { path, size: status.size(), changed }
    }

    fn check(&self) -> Result<()> {
        let path = self.path.display();
        // It is opened later, as a disk: whatever is there now is not waited for.
        let now = self.path.metadata().map_err(|error| anyhow::anyhow!("disk {path}: {error}"))?;
        ensure!(
            Self::of(self.path.clone(), &now) == *self,
            "disk {path}: it was changed after the snapshot was made, so the guest would not know it: name another with \
             --disk, or make snapshots of machines that write to a layer (,overlay) or end with it (--stop)"
        );
        Ok(())
    }
}

/// The names of the files that take the state of a machine like `machine`, in their order.
pub fn names(machine: &MachineConfig) -> Vec<String> {
    let layers = machine.disk.iter().enumerate().filter(|(_, disk)| disk.overlay.is_some());
    let layers = layers.map(|(index, _)| STATE.to_owned() + &layer(index));
    [STATE, MEMORY].map(str::to_owned).into_iter().chain(layers).collect()
}

/// What is added to the name of `state` for a copy of the disk with this index.
pub fn image(index: usize) -> String {
    format!(".image{index}")
}

/// What is added to the name of `state` for the layer of the disk with this index.
fn layer(index: usize) -> String {
    format!(".disk{index}")
}

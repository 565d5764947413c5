//! The bodies of requests about snapshots.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Deserialize;
use tinyvmm::memory::saved::Extent;

use super::or_default;
use crate::snapshot::MemoryPlace;

/// PUT /snapshot/create
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// A new file for guest RAM.
    pub mem_file_path: PathBuf,
    /// A new file for all else.
    pub snapshot_path: PathBuf,
    /// All, unless given.
    snapshot_type: Option<SnapshotType>,
}

/// What a snapshot has of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum SnapshotType {
    Full,
    Diff,
}

impl SnapshotCreate {
    /// How much of the memory is to be written.
    pub fn extent(&self) -> Extent {
        match self.snapshot_type {
            Some(SnapshotType::Diff) => Extent::Diff,
            Some(SnapshotType::Full) | None => Extent::Full,
        }
    }
}

/// PUT /snapshot/load
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The file that is not guest RAM.
    pub snapshot_path: PathBuf,
    /// That with guest RAM, by its old name.
    pub mem_file_path: Option<PathBuf>,
    /// That with guest RAM.
    pub mem_backend: Option<MemoryBackend>,
    /// Run at once.
    #[serde(default, deserialize_with = "or_default")]
    pub resume_vm: bool,
    /// The guest's clocks go on with the host's.
    #[serde(default, deserialize_with = "or_default")]
    pub clock_realtime: bool,
    /// Other taps for the machine's cards.
    #[serde(default, deserialize_with = "or_default")]
    pub network_overrides: Vec<NetworkOverride>,
    /// What huge pages memory has.
    huge_pages: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    track_dirty_pages: bool,
    #[serde(default, deserialize_with = "or_default")]
    enable_diff_snapshots: bool,
    /// Another socket for the vsock device.
    pub vsock_override: Option<VsockOverride>,
}

/// Where the memory of a snapshot is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// How.
    pub backend_type: BackendType,
    /// Its path.
    pub backend_path: PathBuf,
}

/// How memory is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum BackendType {
    /// From a file.
    File,
    /// By another process.
    Uffd,
}

/// Another socket for the vsock device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket.
    pub uds_path: PathBuf,
}

/// Another tap for a card.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The card's name.
    pub iface_id: String,
    /// The tap.
    pub host_dev_name: String,
}

impl SnapshotLoad {
    /// What in it clients should stop to use, in Firecracker's words.
    pub fn deprecated(&self) -> Option<&'static str> {
        let words =
            "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.";
        (self.mem_file_path.is_some() || self.enable_diff_snapshots).then_some(words)
    }

    /// Whether changes are to be tracked. They are known in any case; GET /machine-config shows it.
    pub fn tracks_changes(&self) -> bool {
        self.track_dirty_pages || self.enable_diff_snapshots
    }

    /// Where guest RAM is. An error names what is not supported.
    pub fn memory(&self) -> Result<MemoryPlace> {
        if let Some(pages) =
            self.huge_pages.as_ref().filter(|pages| !["None", "Snapshot"].contains(&pages.as_str()))
        {
            bail!("huge_pages: {pages} is not supported, memory is that of the snapshot's file");
        }
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(MemoryBackend { backend_type, backend_path: path }), None) => {
                Ok(match backend_type {
                    BackendType::File => MemoryPlace::File(path.clone()),
                    BackendType::Uffd => MemoryPlace::Server(path.clone()),
                })
            }
            (None, Some(path)) => Ok(MemoryPlace::File(path.clone())),
            (Some(_), Some(_)) => bail!(
                "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."
            ),
            (None, None) => {
                bail!("missing field: either `mem_backend` or `mem_file_path` is required.")
            }
        }
    }
}

//! The bodies of requests, field by field as in Firecracker's API description.
//!
//! Fields that are not supported are here, too, so that they are refused by name and not as misspelt.

mod cpu;
mod interface;
mod shown;
mod snapshot;
mod vsock;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::cpu::CpuConfig;
pub use self::interface::{NetworkInterface, PartialNetworkInterface};
pub use self::snapshot::{SnapshotCreate, SnapshotLoad};
pub use self::vsock::VsockBody;
use tinyvmm::config::{Aio, Bucket, DiskConfig, RateLimit};

/// PUT /actions
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionBody {
    /// The action.
    pub action_type: ActionType,
}

/// The actions of PUT /actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ActionType {
    /// Writes a line of metrics.
    FlushMetrics,
    /// Starts the machine.
    InstanceStart,
    /// Presses the power button.
    SendCtrlAltDel,
}

/// PATCH /vm
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// The state to change to.
    pub state: VmState,
}

/// The states of PATCH /vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// The VM is paused.
    Paused,
    /// The VM runs.
    Resumed,
}

/// PUT /boot-source
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: bzImage or ELF.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk.
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    pub boot_args: Option<String>,
}

/// Pages of the host that guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HugePages {
    /// Pages of 4 KiB, or transparent huge pages.
    #[default]
    None,
    /// 2 MiB pages of the hugetlb pool.
    #[serde(rename = "2M")]
    TwoMib,
}

/// PUT /machine-config
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// Virtual CPUs, 1 to 32.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Two threads in each core.
    #[serde(default, deserialize_with = "or_default")]
    pub smt: bool,
    /// Only shown: what a Diff snapshot has to have is known in any case.
    #[serde(default, deserialize_with = "or_default")]
    pub track_dirty_pages: bool,
    /// The pages of guest memory.
    #[serde(default, deserialize_with = "or_default")]
    pub huge_pages: HugePages,
    /// Refused unless "None".
    #[serde(skip_serializing)]
    pub cpu_template: Option<String>,
}

/// PATCH /machine-config
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialMachineConfiguration {
    vcpu_count: Option<u32>,
    mem_size_mib: Option<u64>,
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
    /// Refused unless "None".
    pub cpu_template: Option<String>,
}

impl PartialMachineConfiguration {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `machine` with the fields that are given here.
    pub fn applied_to(self, machine: MachineConfiguration) -> MachineConfiguration {
        MachineConfiguration {
            vcpu_count: self.vcpu_count.unwrap_or(machine.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(machine.mem_size_mib),
            smt: self.smt.unwrap_or(machine.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(machine.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(machine.huge_pages),
            cpu_template: self.cpu_template.or(machine.cpu_template),
        }
    }
}

/// The caching of a disk: what the guest flushes is on the disk in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// Treated as Writeback.
    #[default]
    Unsafe,
    /// The host caches writes until the guest flushes.
    Writeback,
}

/// How a disk's requests are kept going. Left out, it is the host's best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// By threads that wait.
    Sync,
    /// By io_uring.
    Async,
}

/// PUT /drives/{drive_id}
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The drive's name, as in the path.
    pub drive_id: String,
    /// The root file system is on this drive.
    pub is_root_device: bool,
    /// The partition with the root file system.
    pub partuuid: Option<String>,
    /// Either value has the same effect.
    #[serde(default, deserialize_with = "or_default")]
    pub cache_type: CacheType,
    /// The guest may not write.
    #[serde(default, deserialize_with = "or_default")]
    pub is_read_only: bool,
    /// The image file or block device.
    pub path_on_host: Option<PathBuf>,
    /// How its requests are kept going.
    #[serde(serialize_with = "shown::engine")]
    pub io_engine: Option<IoEngine>,
    /// Limits of bandwidth and requests.
    #[serde(serialize_with = "shown::limit")]
    pub rate_limiter: Option<RateLimit>,
    /// Not supported.
    #[serde(serialize_with = "shown::null")]
    socket: RefusedField,
}

impl Drive {
    /// The drive that flags describe as `disk`.
    pub fn of_flags(id: String, disk: &DiskConfig) -> Self {
        Self {
            drive_id: id,
            is_root_device: false,
            partuuid: None,
            cache_type: CacheType::Writeback,
            is_read_only: disk.readonly,
            path_on_host: Some(disk.path.clone()),
            io_engine: Some(match disk.aio {
                Aio::IoUring => IoEngine::Async,
                Aio::Auto | Aio::Threads => IoEngine::Sync,
            }),
            rate_limiter: disk.limit.is_limit().then_some(disk.limit),
            socket: None,
        }
    }

    /// Refuses fields that are not supported.
    pub fn check(&self) -> Result<()> {
        refuse(&[("socket", &self.socket)])
    }

    /// What its `io_engine` is for a disk.
    pub fn aio(&self) -> Aio {
        match self.io_engine {
            None => Aio::Auto,
            Some(IoEngine::Sync) => Aio::Threads,
            Some(IoEngine::Async) => Aio::IoUring,
        }
    }
}

/// PATCH /drives/{drive_id}
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// The drive's name, as in the path.
    pub drive_id: String,
    /// The new file, or the same path after a change of its size.
    pub path_on_host: Option<PathBuf>,
    /// Changes of the limits.
    pub rate_limiter: Option<RateLimit>,
}

/// PUT /balloon
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonBody {
    /// Target size, in MiB.
    pub amount_mib: u64,
    /// The guest may deflate the balloon before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Statistics are on unless this is 0.
    #[serde(default, deserialize_with = "or_default")]
    pub stats_polling_interval_s: u16,
    /// The guest names free pages when it is asked to.
    #[serde(default, deserialize_with = "or_default")]
    pub free_page_hinting: bool,
    /// The guest reports free pages, which go back to the host.
    #[serde(default, deserialize_with = "or_default")]
    pub free_page_reporting: bool,
}

/// PATCH /balloon
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// Target size, in MiB.
    pub amount_mib: u64,
}

/// PATCH /balloon/hinting/start
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintingStart {
    /// The run ends when the guest has named all of its free pages, which is so unless this is false.
    pub acknowledge_on_stop: Option<bool>,
}

/// PATCH /balloon/statistics
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsUpdate {
    /// Seconds between statistics.
    pub stats_polling_interval_s: u16,
}

/// PUT /hotplug/memory
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    /// Memory that can be plugged, in MiB.
    pub total_size_mib: u64,
    /// Granularity of plugging, in MiB.
    #[serde(default)]
    pub block_size_mib: Option<u64>,
    /// What the host grants in one piece, in MiB; here always one block.
    #[serde(default)]
    pub slot_size_mib: Option<u64>,
}

/// PATCH /hotplug/memory
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryUpdate {
    /// Memory that the guest is to plug, in MiB.
    pub requested_size_mib: u64,
}

/// PUT /entropy
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Limits of bandwidth and requests.
    #[serde(serialize_with = "shown::limit")]
    pub rate_limiter: Option<RateLimit>,
}

/// PUT /serial
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file for the console's output.
    pub serial_out_path: Option<PathBuf>,
    /// A limit of bytes: output beyond it is dropped.
    pub rate_limiter: Option<Bucket>,
}

/// PUT /logger
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// The file for messages, in addition to stderr.
    pub log_path: Option<PathBuf>,
    /// Most verbose level of messages.
    pub level: Option<String>,
    /// Messages have their level.
    pub show_level: Option<bool>,
    /// Messages have their place in the source.
    pub show_log_origin: Option<bool>,
    module: RefusedField,
}

impl Logger {
    /// Refuses fields that are not supported.
    pub fn check(&self) -> Result<()> {
        refuse(&[("module", &self.module)])
    }
}

/// PUT /metrics
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsBody {
    /// The file for metrics.
    pub metrics_path: PathBuf,
}

/// Reads a field that can be left out: `null` leaves it out.
pub(super) fn or_default<'de, T, D>(value: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// A field that is refused if it is present.
type RefusedField = Option<IgnoredAny>;

fn refuse(fields: &[(&str, &RefusedField)]) -> Result<()> {
    match fields.iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => bail!("{name}: not supported yet, leave it out"),
        None => Ok(()),
    }
}

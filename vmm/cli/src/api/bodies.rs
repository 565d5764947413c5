//! The bodies of requests, field by field as Firecracker's description has them.
//!
//! A field that cannot be honoured is here, too, so that it is refused by its name and not as a misspelt one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use tinyvmm::config::{DiskConfig, RateLimit};

/// PUT /actions
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What is to be done.
    pub action_type: ActionType,
}

/// What PUT /actions can do.
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
    /// What it is to be.
    pub state: VmState,
}

/// What PATCH /vm can make of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmState {
    /// It stands still.
    Paused,
    /// It runs.
    Resumed,
}

/// PUT /boot-source
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// Pages of the host that guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    None,
    /// Those of the hugetlb pool.
    #[serde(rename = "2M")]
    TwoMib,
}

/// PUT /machine-config
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Virtual CPUs, 1 to 32.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Two threads in each core.
    #[serde(default)]
    pub smt: bool,
    /// Not honoured.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What guest memory is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Not honoured, but for "None".
    #[serde(skip_serializing)]
    pub cpu_template: Option<String>,
}

/// PATCH /machine-config
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialMachine {
    vcpu_count: Option<u32>,
    mem_size_mib: Option<u64>,
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
    cpu_template: Option<String>,
}

impl PartialMachine {
    /// `machine`, with what is given here.
    pub fn applied_to(self, machine: Machine) -> Machine {
        Machine {
            vcpu_count: self.vcpu_count.unwrap_or(machine.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(machine.mem_size_mib),
            smt: self.smt.unwrap_or(machine.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(machine.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(machine.huge_pages),
            cpu_template: self.cpu_template.or(machine.cpu_template),
        }
    }
}

/// How much of a disk is cached: a flush of the guest's reaches the disk in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// The same as the other here.
    #[default]
    Unsafe,
    /// By the host, until the guest flushes.
    Writeback,
}

/// How a disk's I/O is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// By a thread that waits.
    #[default]
    Sync,
    /// Not honoured.
    Async,
}

/// PUT /drives/{drive_id}
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name; the same as in the path.
    pub drive_id: String,
    /// The kernel's root is on it.
    pub is_root_device: bool,
    /// The partition of it that has the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// The same whatever is said.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest may not write.
    #[serde(default)]
    pub is_read_only: bool,
    /// The image file or block device.
    pub path_on_host: Option<PathBuf>,
    /// Sync only.
    #[serde(default)]
    pub io_engine: IoEngine,
    /// How fast it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
    /// Not honoured.
    #[serde(skip_serializing)]
    socket: Refused,
}

impl Drive {
    /// A drive as flags describe it.
    pub fn of_flags(id: String, disk: &DiskConfig) -> Self {
        Self {
            drive_id: id,
            is_root_device: false,
            partuuid: None,
            cache_type: CacheType::Writeback,
            is_read_only: disk.readonly,
            path_on_host: Some(disk.path.clone()),
            io_engine: IoEngine::Sync,
            rate_limiter: disk.limit.is_limit().then_some(disk.limit),
            socket: None,
        }
    }

    /// Refuses what cannot be honoured.
    pub fn check(&self) -> Result<()> {
        refuse(&[("socket", &self.socket)])?;
        if self.io_engine == IoEngine::Async {
            bail!("io_engine Async: not supported, leave it out or say Sync");
        }
        Ok(())
    }
}

/// PATCH /drives/{drive_id}
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// Its name; the same as in the path.
    pub drive_id: String,
    /// Another file, or the same with another size.
    pub path_on_host: Option<PathBuf>,
    /// What is to be different of how fast it may be.
    pub rate_limiter: Option<RateLimit>,
}

/// PUT /balloon
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How large it is to be, in MiB.
    pub amount_mib: u64,
    /// The guest may take memory back before it runs out.
    pub deflate_on_oom: bool,
    /// Not zero: the guest tells statistics.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Not honoured.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// What the guest frees goes back to the host.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// PATCH /balloon
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How large it is to be, in MiB.
    pub amount_mib: u64,
}

/// PATCH /balloon/statistics
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsUpdate {
    /// Seconds.
    pub stats_polling_interval_s: u16,
}

/// PUT /hotplug/memory
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    /// What can be plugged, in MiB.
    pub total_size_mib: u64,
    /// The least that can be plugged, in MiB.
    #[serde(default)]
    pub block_size_mib: Option<u64>,
    /// What the host grants in one piece; here always a block.
    #[serde(default)]
    pub slot_size_mib: Option<u64>,
}

/// PATCH /hotplug/memory
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryUpdate {
    /// What the guest is to plug, in MiB.
    pub requested_size_mib: u64,
}

/// PUT /entropy
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How fast random numbers come.
    pub rate_limiter: Option<RateLimit>,
}

/// PUT /serial
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Where output goes.
    pub serial_out_path: Option<PathBuf>,
    rate_limiter: Refused,
}

impl Serial {
    /// Refuses what cannot be honoured.
    pub fn check(&self) -> Result<()> {
        refuse(&[("rate_limiter", &self.rate_limiter)])
    }
}

/// PUT /logger
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// Where messages go, besides the last one.
    pub log_path: Option<PathBuf>,
    /// Which messages.
    pub level: Option<String>,
    /// Messages tell their level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Messages tell where in the source they come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    #[serde(skip_serializing)]
    module: Refused,
}

impl Logger {
    /// Says where messages go, and nothing else.
    pub fn to_file(log_path: PathBuf) -> Self {
        let (level, show_level, show_log_origin, module) = (None, None, None, None);
        Self { log_path: Some(log_path), level, show_level, show_log_origin, module }
    }

    /// Refuses what cannot be honoured.
    pub fn check(&self) -> Result<()> {
        refuse(&[("module", &self.module)])
    }
}

/// PUT /metrics
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where they go.
    pub metrics_path: PathBuf,
}

/// PUT /cpu-config
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    #[serde(default)]
    kvm_capabilities: Vec<IgnoredAny>,
    #[serde(default)]
    cpuid_modifiers: Vec<IgnoredAny>,
    #[serde(default)]
    msr_modifiers: Vec<IgnoredAny>,
    #[serde(default)]
    reg_modifiers: Vec<IgnoredAny>,
    #[serde(default)]
    vcpu_features: Vec<IgnoredAny>,
}

impl CpuConfig {
    /// Refuses what cannot be honoured: all that is not empty.
    pub fn check(&self) -> Result<()> {
        let field = |list: &Vec<IgnoredAny>| list.first().copied();
        refuse(&[
            ("kvm_capabilities", &field(&self.kvm_capabilities)),
            ("cpuid_modifiers", &field(&self.cpuid_modifiers)),
            ("msr_modifiers", &field(&self.msr_modifiers)),
            ("reg_modifiers", &field(&self.reg_modifiers)),
            ("vcpu_features", &field(&self.vcpu_features)),
        ])
    }
}

/// A field that is refused if it is there.
type Refused = Option<IgnoredAny>;

fn refuse(fields: &[(&str, &Refused)]) -> Result<()> {
    match fields.iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => bail!("{name}: not supported yet, leave it out"),
        None => Ok(()),
    }
}

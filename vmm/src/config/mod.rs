//! The description of a machine. Serialized, it is the machine's part of a configuration file.

mod balloon;
mod cpu_template;
mod cpus;
mod disk;
mod mem;
mod net;
mod rate;
mod share;
mod size;
pub mod text;
mod vsock;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use balloon::{BalloonConfig, BalloonFeatures};
pub use cpu_template::{Bitmap, CpuTemplate, CpuidChange, CpuidRegister, MsrChange, Number};
pub use cpus::Cpus;
pub use disk::{Aio, DiskConfig, Overlay};
pub use mem::Mem;
pub use net::{Mac, NetConfig, NetEnd, Publish, User};
pub use rate::{Bucket, RateLimit};
pub use share::{MAX_TAG, ShareConfig, VhostUserConfig, VhostUserKind};
pub use size::Size;
pub use vsock::VsockConfig;

use crate::layout;

/// A machine: its processors, memory, kernel and devices. Paths are only named here: nothing opens them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs and their topology. 1 unless given.
    #[serde(with = "text")]
    pub cpus: Cpus,
    /// What is changed of what the CPUs are.
    #[serde(with = "text", skip_serializing_if = "is_default")]
    pub cpu_template: CpuTemplate,
    /// Memory, from 16 MiB, and how much more can be plugged. 256 MiB unless given.
    #[serde(with = "text")]
    pub mem: Mem,
    /// Whether memory comes from the host's hugetlb pool, in pages of 2 MiB.
    pub hugepages: bool,
    /// The balloon's target at the start; or that there is no balloon device.
    #[serde(with = "text")]
    pub balloon: BalloonConfig,
    /// The features that the balloon offers.
    #[serde(skip_serializing_if = "is_default")]
    pub balloon_features: BalloonFeatures,
    /// The kernel: a bzImage or an ELF.
    pub kernel: Option<PathBuf>,
    /// What unpacks a bzImage.
    pub kernel_entry: KernelEntry,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, appended to the default one.
    pub cmdline: Option<String>,
    /// Whether `cmdline` is the whole command line.
    pub cmdline_only: bool,
    /// Whether a kernel without ACPI finds its devices on the command line in spite of `cmdline_only`.
    #[serde(skip_serializing_if = "is_default")]
    pub cmdline_devices: bool,
    /// Disks: the first is /dev/vda.
    pub disk: Vec<DiskConfig>,
    /// Network cards: the first is eth0.
    pub net: Vec<NetConfig>,
    /// The vsock device, if it has one.
    pub vsock: Option<VsockConfig>,
    /// Folders of the host.
    pub share: Vec<ShareConfig>,
    /// Devices that processes serve which are there already.
    pub vhost_user: Vec<VhostUserConfig>,
    /// Limits of the random number generator's bytes and requests.
    #[serde(skip_serializing_if = "is_default")]
    pub entropy_limit: RateLimit,
    /// The location of the serial port's registers.
    pub uart: Uart,
    /// Whether the machine has Firecracker's boot timer.
    #[serde(skip_serializing_if = "is_default")]
    pub boot_timer: bool,
    /// Identity in the SMBIOS tables. Random unless given.
    pub uuid: Option<Uuid>,
}

/// Whether `value` is left out of a serialized machine.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            cpus: Cpus { sockets: 1, cores: 1, threads: 1 },
            cpu_template: CpuTemplate::default(),
            mem: Mem::fixed(Size::new(256 * layout::MIB)),
            hugepages: false,
            balloon: BalloonConfig::Target(Size::new(0)),
            balloon_features: BalloonFeatures::default(),
            kernel: None,
            kernel_entry: KernelEntry::Direct,
            initrd: None,
            cmdline: None,
            cmdline_only: false,
            cmdline_devices: false,
            disk: Vec::new(),
            net: Vec::new(),
            vsock: None,
            share: Vec::new(),
            vhost_user: Vec::new(),
            entropy_limit: RateLimit::default(),
            uart: Uart::Ports,
            boot_timer: false,
            uuid: None,
        }
    }
}

impl MachineConfig {
    /// Least guest memory, in bytes: no Linux starts with less.
    pub const MIN_MEM: u64 = 16 * layout::MIB;

    /// Checks the configuration, as far as that does not depend on the host. An error begins with the key.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            self.cmdline.is_some() || !self.cmdline_only,
            "--cmdline-only: there is no command line, add --cmdline STRING"
        );
        ensure!(
            !self.cmdline.as_ref().is_some_and(|line| line.contains('\0')),
            "--cmdline: contains a zero byte"
        );
        let mem = self.mem.bytes();
        let hint = if mem < 4096 { " (bytes: say M or G)" } else { "" };
        ensure!(mem >= Self::MIN_MEM, "--mem {}: too little{hint}, the least is 16M", self.mem);
        let page = if self.hugepages { 2 << 20 } else { 4096 };
        ensure!(
            mem.is_multiple_of(page),
            "--mem {}: not a multiple of {}, the size of a page",
            self.mem,
            Size::new(page)
        );
        self.mem.validate_room(self.hugepages)?;
        self.balloon.validate(self.mem.boot, self.hugepages)?;
        let served = self.share.len() + self.vhost_user.len();
        let asked_for = self.disk.len() + self.net.len() + served;
        let most = layout::MAX_VIRTIO + asked_for - self.virtio_devices();
        let what = match (self.net.is_empty(), served == 0) {
            (true, true) => "disks",
            (false, true) => "disks and network cards",
            (_, false) => "disks, network cards and shares",
        };
        ensure!(asked_for <= most, "--disk: {asked_for} {what}, at most {most} can be had");
        NetConfig::ensure_apart(&self.net)?;
        share::ensure_tags_apart(&self.share, &self.vhost_user)
    }

    /// Whether other processes serve some of its devices, and have its memory for that.
    pub fn is_served_by_others(&self) -> bool {
        !self.share.is_empty() || !self.vhost_user.is_empty()
    }

    /// Publishes `port` at the first card in the user's network, which is added if there is none.
    pub fn publish(&mut self, port: Publish) {
        for card in &mut self.net {
            if let NetEnd::User(user) = &mut card.end {
                return user.publish.push(port);
            }
        }
        let user = User { publish: vec![port], host: false };
        self.net.push(NetConfig::new(NetEnd::User(user)));
    }

    /// The number of its virtio devices.
    pub fn virtio_devices(&self) -> usize {
        let random_numbers = 1;
        let (balloon, room) = (self.balloon_target().is_some(), self.mem.room().is_some());
        let of_one_kind = [balloon, room, self.vsock.is_some()].map(usize::from);
        let of_many = [self.disk.len(), self.net.len(), self.share.len(), self.vhost_user.len()];
        random_numbers + of_one_kind.iter().chain(&of_many).sum::<usize>()
    }

    /// The balloon's target at the start, in bytes; `None` for a machine without a balloon.
    pub fn balloon_target(&self) -> Option<u64> {
        match self.balloon {
            BalloonConfig::Target(size) if !self.hugepages => Some(size.bytes()),
            _ => None,
        }
    }
}

/// The location of the serial port's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uart {
    /// I/O ports, as on a PC.
    Ports,
    /// Guest memory.
    Memory,
}

/// What unpacks a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelEntry {
    /// tinyvmm; the guest starts with the kernel itself.
    Direct,
    /// The bzImage's own decompressor, in the guest.
    Decompress,
}

//! What the owner of a machine reaches its devices by, whether the machine runs or not.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::output::Output;
use crate::devices::power::PanicFlag;
use crate::devices::serial::SerialPort;
use crate::virtio::balloon_handle::BalloonHandle;
use crate::virtio::disk_counts::DiskCounts;
use crate::virtio::mem_handle::MemHandle;
use crate::virtio::net_counts::NetCounts;
use crate::virtio::vsock_counts::VsockCounts;

/// The handles of a machine.
pub struct Handles {
    /// The balloon, if the machine has one.
    pub balloon: Option<BalloonHandle>,
    /// The memory that can be plugged, if the machine has room for more.
    pub memory: Option<MemHandle>,
    /// What has gone through the disks, in the order of the configuration.
    pub disks: Vec<Arc<DiskCounts>>,
    /// What has gone through the network cards, in the order of the configuration.
    pub cards: Vec<Arc<NetCounts>>,
    /// What has gone through the vsock device, if the machine has one.
    pub vsock: Option<Arc<VsockCounts>>,
    /// The serial port, which a vCPU may hold for as long as it waits for the console's reader.
    pub serial: Arc<Mutex<SerialPort>>,
    /// What the guest has printed, on its way.
    pub output: Output,
    pub(super) panicked: PanicFlag,
    pub(super) power_button: EventFd,
}

impl Handles {
    /// Presses the power button: an interrupt to the ACPI event device.
    pub fn press_power_button(&self) -> Result<()> {
        Ok(self.power_button.write(1)?)
    }
}

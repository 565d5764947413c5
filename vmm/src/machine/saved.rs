//! The state of a machine that is stopped, without its memory.

use anyhow::{Result, ensure};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::devices::{Devices, PcSaved};
use super::{Machine, New};
use crate::arch::saved::{self, Clocks, CpuState, VmState};
use crate::arch::vm;
use crate::config::MachineConfig;
use crate::devices::serial::SerialSaved;
use crate::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::saved::VirtioState;

/// All that a stopped machine is, but for its description, its memory and what its disks have.
#[derive(Serialize, Deserialize)]
pub struct SavedMachine {
    vm: VmState,
    cpus: Vec<CpuState>,
    pub(super) serial: SerialSaved,
    pub(super) pc: PcSaved,
    /// In the order of the machine's list.
    pub(super) virtio: Vec<VirtioState>,
}

/// What differs between a machine that was saved and one that is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// It has a UUID of its own, and the guest finds out that it is a copy, so that its random numbers are others.
    pub identity: bool,
    /// How its clocks go on.
    pub clocks: Clocks,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { identity: true, clocks: Clocks::Continue }
    }
}

impl Machine {
    /// Reads the machine's state. Its memory stays as it is until the machine starts again.
    pub fn save(&self, kvm: &Kvm) -> Result<SavedMachine> {
        ensure!(
            self.vcpus.iter().all(|vcpu| vcpu.is_between_instructions),
            "a CPU does not come to the end of its instruction: resume the machine and try again"
        );
        let cpus: Vec<_> = self.vcpus.iter().map(|vcpu| &vcpu.fd).collect();
        let (vm, cpus) = saved::save(kvm, &self.board.vm, self.board.has_pit, &cpus)?;
        let virtio = self.board.virtio.iter().map(|device| lock(device).save());
        Ok(SavedMachine {
            vm,
            cpus,
            serial: lock(&self.board.handles.serial).save(),
            pc: self.board.pc.save(),
            virtio: virtio.collect::<Result<_>>()?,
        })
    }
}

impl SavedMachine {
    /// Whether the guest has a driver for the virtio device with this number (virtio 1.2, 5).
    pub fn has_driver(&self, id: u32) -> bool {
        self.virtio.iter().any(|device| device.has_driver(id))
    }

    /// Whether the machine has a PIT.
    pub(super) fn has_pit(&self) -> bool {
        self.vm.has_pit()
    }

    /// Has the `devices` of a new machine go on where the saved ones were.
    pub(super) fn restore_devices(&self, devices: &Devices) -> Result<()> {
        let count = devices.virtio.len();
        ensure!(
            self.virtio.len() == count,
            "the snapshot has {} devices, not {count}",
            self.virtio.len()
        );
        for (device, state) in devices.virtio.iter().zip(&self.virtio) {
            lock(device).restore(state)?;
        }
        devices.pc.restore(&self.pc);
        Ok(())
    }

    /// Has the `new` machine, with its devices restored and its memory in `ram`, go on where the saved machine was.
    pub(super) fn restore(
        &self,
        renewal: Renewal,
        new: &New,
        config: &MachineConfig,
        ram: &GuestRam,
    ) -> Result<()> {
        let New { vm, fds, devices } = new;
        self.vm.restore(&self.cpus, vm, fds, renewal.clocks)?;
        // What was raised just before the stop may be in no saved state; once more does no harm.
        devices.virtio.iter().for_each(|device| lock(device).transport.raise_again());
        lock(&devices.serial).raise_again();
        if renewal.identity {
            vm::write_identity(config, ram)?;
            devices.new_identity.write(1)?;
        }
        Ok(())
    }
}

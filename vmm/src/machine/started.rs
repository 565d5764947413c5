//! A machine that has started, whether it runs or is paused.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Board, Machine, RunningMachine};
use crate::event::Halt;
use crate::sync::lock;
use crate::virtio::balloon_handle::BalloonHandle;
use crate::virtio::disk_counts::DiskCounts;
use crate::virtio::mem_handle::MemHandle;
use crate::worker::Worker;

/// What the owner of a machine has once it was started.
pub enum Started {
    /// Its CPUs run.
    Running(RunningMachine),
    /// It stands still.
    Paused(Machine),
    /// It could not be stopped, or started again.
    Lost,
}

impl Started {
    fn board(&self) -> Option<&Board> {
        match self {
            Self::Running(machine) => Some(&machine.board),
            Self::Paused(machine) => Some(&machine.board),
            Self::Lost => None,
        }
    }

    /// Its state, as clients of the API are told.
    pub fn state(&self) -> &'static str {
        if self.is_paused() { "Paused" } else { "Running" }
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Paused(_))
    }

    /// Whether there is nothing left that could run.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }

    /// Makes it stand still, with all that it has begun done.
    pub fn pause(&mut self) -> Result<()> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(machine) => *self = Self::Paused(machine.stop()?),
            other => *self = other,
        }
        Ok(())
    }

    /// Makes it go on.
    pub fn resume(&mut self) -> Result<()> {
        match std::mem::replace(self, Self::Lost) {
            Self::Paused(machine) => *self = Self::Running(machine.resume()?),
            other => *self = other,
        }
        Ok(())
    }

    /// Does `change` while it stands still, and has it go on after that as it was.
    pub fn while_stopped(&mut self, change: impl FnOnce(&mut Machine) -> Result<()>) -> Result<()> {
        let was_paused = self.is_paused();
        self.pause()?;
        let Self::Paused(machine) = self else { bail!("the machine is lost") };
        let changed = change(machine);
        if !was_paused {
            self.resume()?;
        }
        changed
    }

    /// Stops it for good.
    pub fn end(self) -> Result<Machine> {
        match self {
            Self::Running(machine) => machine.end(),
            Self::Paused(machine) => Ok(machine.ended()),
            Self::Lost => bail!("the machine is lost"),
        }
    }

    /// Presses the power button: an interrupt to the ACPI event device.
    pub fn press_power_button(&self) -> Result<()> {
        Ok(self.board().context("the machine is lost")?.power_button.write(1)?)
    }

    /// What `halt` was, with what the guest's kernel has printed in mind.
    pub fn explain(&self, halt: Halt) -> Halt {
        match self.board() {
            Some(board) => board.panicked.explain(halt),
            None => halt,
        }
    }

    /// What sets the guest's balloon, if the machine has one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.board()?.balloon.as_ref()
    }

    /// What has memory plugged, if the machine has room for more.
    pub fn memory(&self) -> Option<&MemHandle> {
        self.board()?.memory.as_ref()
    }

    /// What has gone through each disk since the guest's last reset.
    pub fn disks(&self) -> impl Iterator<Item = &Arc<DiskCounts>> {
        self.board().into_iter().flat_map(|board| &board.disks)
    }

    /// Processor time that its threads have used, by name. A device's begins anew when its driver does.
    pub fn cpu_times(&self) -> Vec<(String, Duration)> {
        let mut times = Vec::new();
        match self {
            Self::Running(machine) => {
                let names = (0..).map(|index: u32| format!("vcpu{index}"));
                times.extend(names.zip(machine.vcpus.iter().map(Worker::cpu_time)));
                times.push(("console".into(), machine.console.cpu_time()));
            }
            Self::Paused(machine) => {
                times
                    .extend(machine.vcpus.iter().map(|v| (format!("vcpu{}", v.index), v.cpu_time)));
                times.push(("console".into(), machine.console.cpu_time));
            }
            Self::Lost => {}
        }
        let devices = self.board().into_iter().flat_map(Board::devices);
        times.extend(devices.filter_map(|device| lock(device).cpu_time()));
        times
    }
}

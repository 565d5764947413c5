//! A machine that has started, whether it runs or is paused.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Board, Handles, Machine, RunningMachine};
use crate::event::Halt;
use crate::sync::lock;
use crate::worker::Worker;

/// What the owner of a machine has once it was started.
pub enum LiveMachine {
    /// Its vCPUs run.
    Running(RunningMachine),
    /// They do not.
    Paused(Machine),
    /// It could not be stopped, or started again.
    Lost,
}

impl LiveMachine {
    fn board(&self) -> Option<&Board> {
        match self {
            Self::Running(machine) => Some(&machine.board),
            Self::Paused(machine) => Some(&machine.board),
            Self::Lost => None,
        }
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Paused(_))
    }

    /// Whether there is nothing left that could run.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }

    /// Stops its threads, with each request that a device has begun done.
    pub fn pause(&mut self) -> Result<()> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(machine) => *self = Self::Paused(machine.stop()?),
            other => *self = other,
        }
        Ok(())
    }

    /// Starts its threads again.
    pub fn resume(&mut self) -> Result<()> {
        match std::mem::replace(self, Self::Lost) {
            Self::Paused(machine) => *self = Self::Running(machine.resume()?),
            other => *self = other,
        }
        Ok(())
    }

    /// Makes `change` while it is paused, and resumes it if it ran.
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

    /// What reaches its devices; `None` of one that is lost.
    pub fn handles(&self) -> Option<&Handles> {
        self.board().map(|board| &board.handles)
    }

    /// What `halt` was, with what the guest's kernel has printed in mind.
    pub fn explain(&self, halt: Halt) -> Halt {
        match self.board() {
            Some(board) => board.explain(halt),
            None => halt,
        }
    }

    /// Processor time that its threads have used, by name. A device's begins anew when its driver does.
    pub fn cpu_times(&self) -> Vec<(String, Duration)> {
        let (vcpus, console): (Vec<_>, _) = match self {
            Self::Running(machine) => {
                (machine.vcpus.iter().map(Worker::cpu_time).collect(), machine.console.cpu_time())
            }
            Self::Paused(machine) => {
                (machine.vcpus.iter().map(|vcpu| vcpu.cpu_time).collect(), machine.console.cpu_time)
            }
            Self::Lost => return Vec::new(),
        };
        let names = (0..).map(|index: u32| format!("vcpu{index}"));
        let mut times: Vec<_> = names.zip(vcpus).collect();
        times.push(("console".into(), console));
        let devices = self.board().into_iter().flat_map(|board| &board.virtio);
        times.extend(devices.filter_map(|device| lock(device).transport.cpu_time()));
        times
    }
}

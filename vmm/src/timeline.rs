//! The marks and exits that a machine reports to an observer, if there is one.

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use serde::Serialize;

/// A mark of a boot, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The process starts.
    Start,
    /// Flags and configuration file are understood.
    Configured,
    /// KVM has made the virtual machine.
    VmCreated,
    /// Guest memory is mapped.
    MemoryReady,
    /// Kernel and initrd are in guest memory.
    KernelLoaded,
    /// CPU 0 is about to run.
    CpuEntered,
    /// The guest sends its first byte to the serial port.
    FirstOutput,
    /// The kernel prints that it starts init; with `quiet` it does not.
    InitStarted,
    /// Init reports that it runs, through [`crate::devices::guest_report`].
    InitMark,
    /// The machine's end, or its first reset.
    End,
}

/// An access of a guest that made a vCPU exit to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// IN from this port.
    In(u16),
    /// OUT to this port.
    Out(u16),
    /// A read of this guest physical address.
    Read(u64),
    /// A write to this guest physical address.
    Write(u64),
}

/// An observer of a machine. Called on any of the machine's threads, which continue when the call returns.
pub trait Observer: Send + Sync {
    /// The boot has reached `mark`, which may not be the first time.
    fn reached(&self, mark: Mark);
    /// This vCPU was made. It has not run yet.
    fn made_cpu(&self, cpu: &VcpuFd);
    /// A vCPU has exited for this access.
    fn exited(&self, access: Access);
}

/// Access to the observer; by `default` there is none. Clones share it.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<dyn Observer>>);

impl Timeline {
    /// Access to `observer`.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        Self(Some(observer))
    }

    /// Reports that the boot has reached `mark`.
    pub fn reach(&self, mark: Mark) {
        self.0.iter().for_each(|observer| observer.reached(mark));
    }

    pub(crate) fn made_cpu(&self, cpu: &VcpuFd) {
        self.0.iter().for_each(|observer| observer.made_cpu(cpu));
    }

    pub(crate) fn exited(&self, access: Access) {
        self.0.iter().for_each(|observer| observer.exited(access));
    }
}

//! What a machine shows to whoever measures it: nothing, unless someone wants to know.

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use serde::Serialize;

/// What a boot passes on its way, in this order.
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
    /// Kernel and initrd are in it.
    KernelLoaded,
    /// CPU 0 is about to run.
    CpuEntered,
    /// The guest sends its first byte to the serial port.
    FirstOutput,
    /// The kernel says that it starts init; a kernel with `quiet` does not say so.
    InitStarted,
    /// Init says so itself, through [`crate::devices::guest_report`].
    InitMark,
    /// The machine's end, or its first reset.
    End,
}

/// What a guest did at an address that made a CPU exit to us.
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

/// Who measures a machine. Called on any of its threads, which go on when the call returns.
pub trait Observer: Send + Sync {
    /// The boot is at `mark`, and not always for the first time.
    fn reached(&self, mark: Mark);
    /// This CPU was made. It has not run yet.
    fn made_cpu(&self, cpu: &VcpuFd);
    /// A CPU has exited for this.
    fn exited(&self, access: Access);
}

/// The way to an observer, if there is one; by `default` there is none. Clones lead to the same.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<dyn Observer>>);

impl Timeline {
    /// The way to `observer`.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        Self(Some(observer))
    }

    /// The boot is at `mark` now.
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

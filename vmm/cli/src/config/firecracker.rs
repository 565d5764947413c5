//! Firecracker's flags that tinyvmm has under no other name.

use std::path::PathBuf;

/// How a process that was started under the name `firecracker` behaves.
#[derive(Clone, Debug, Default)]
pub struct FirecrackerConfig {
    /// The file for messages; standard output without one.
    pub log_path: Option<PathBuf>,
    /// The file for lines of metrics.
    pub metrics_path: Option<PathBuf>,
    /// A PCI bus is asked for, which the machine has not.
    pub wants_pci: bool,
    /// When the parent says that it started the process.
    pub start: StartTimes,
}

/// Times in microseconds; `None` where the flag was not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartTimes {
    /// Start of the process, on the monotonic clock.
    pub wall: Option<u64>,
    /// Start of the process, on its processor clock.
    pub cpu: Option<u64>,
    /// Processor time that the parent process had used.
    pub parent_cpu: Option<u64>,
}

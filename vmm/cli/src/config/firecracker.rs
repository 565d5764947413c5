//! What Firecracker's flags say that tinyvmm's do not.

use std::path::PathBuf;

/// How a process behaves that was started under the name `firecracker`.
#[derive(Clone, Debug, Default)]
pub struct FirecrackerConfig {
    /// Where its messages go; standard output without it.
    pub log_path: Option<PathBuf>,
    /// Where lines of metrics go.
    pub metrics_path: Option<PathBuf>,
    /// When whoever started the process says that this was.
    pub start: StartTimes,
}

/// Times in microseconds; each is there if it was said.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartTimes {
    /// On the monotonic clock.
    pub wall: Option<u64>,
    /// On the process's processor clock.
    pub cpu: Option<u64>,
    /// Processor time that the starting process had used.
    pub parent_cpu: Option<u64>,
}

//! What a machine uses: GET /tinyvmm/stats.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::measure::exits::ExitCounts;
use crate::report::Memory;
use tinyvmm::virtio::disk_counts::DiskCounts;
use vmm_sys_util::metric::Metric;

/// Names of what a guest tells its balloon, by their tags (virtio 1.2, 5.5.6.4; from 10 on
/// include/uapi/linux/virtio_balloon.h).
pub(super) const BALLOON: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// The answer to GET /tinyvmm/stats.
#[derive(Serialize)]
pub(super) struct Stats {
    pub state: &'static str,
    pub memory_kib: MemoryStats,
    /// `None` where KVM does not tell.
    pub exits: Option<ExitCounts>,
    pub disks: Vec<Value>,
    /// Milliseconds of processor time by thread.
    pub cpu_ms: BTreeMap<String, f64>,
}

#[derive(Serialize)]
pub(super) struct MemoryStats {
    /// What the machine has.
    pub configured: u64,
    /// What the guest has plugged besides.
    pub plugged: u64,
    /// What of it the guest does without, as it says.
    pub balloon: u64,
    #[serde(flatten)]
    pub used: Memory,
}

/// Times by the names of threads.
pub(super) fn cpu_ms(times: Vec<(String, Duration)>) -> BTreeMap<String, f64> {
    times.into_iter().map(|(name, time)| (name, time.as_micros() as f64 / 1e3)).collect()
}

/// A disk's part of the answer.
pub(super) fn disk(id: &str, counts: &DiskCounts) -> Value {
    json!({
        "id": id,
        "reads": counts.reads.count(),
        "read_bytes": counts.read_bytes.count(),
        "writes": counts.writes.count(),
        "write_bytes": counts.write_bytes.count(),
        "flushes": counts.flushes.count(),
        "discards": counts.discards.count(),
        "errors": counts.errors.count(),
    })
}

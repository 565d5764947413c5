//! What a machine uses: GET /tinyvmm/stats.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::measure::exits::ExitCounts;
use crate::report::Memory;
use tinyvmm::virtio::disk_counts::DiskCounts;
use vmm_sys_util::metric::Metric;

/// Names of a balloon's statistics, by their tags (virtio 1.2, 5.5.6.4; from 10 on
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

/// The response to GET /tinyvmm/stats.
#[derive(Serialize)]
pub(super) struct Stats {
    pub state: &'static str,
    pub memory_kib: MemoryStats,
    /// `None` where KVM does not count them.
    pub exits: Option<ExitCounts>,
    pub disks: Vec<Value>,
    /// Milliseconds of processor time, by thread.
    pub cpu_ms: BTreeMap<String, f64>,
}

#[derive(Serialize)]
pub(super) struct MemoryStats {
    /// Memory at the start.
    pub configured: u64,
    /// Memory that the guest has plugged, not in `configured`.
    pub plugged: u64,
    /// The balloon's size, as the guest reports it.
    pub balloon: u64,
    #[serde(flatten)]
    pub used: Memory,
}

/// Milliseconds of processor time, by the names of threads.
pub(super) fn cpu_ms(times: Vec<(String, Duration)>) -> BTreeMap<String, f64> {
    times.into_iter().map(|(name, time)| (name, time.as_micros() as f64 / 1e3)).collect()
}

/// The part of the response for a disk.
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

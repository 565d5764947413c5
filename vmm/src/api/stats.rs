//! What a machine uses: GET /tinyvmm/stats, and the lines of metrics.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use crate::exits::ExitCounts;
use crate::report::Memory;
use crate::virtio::disk_counts::DiskCounts;

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
        "reads": counts.reads.get(),
        "read_bytes": counts.read_bytes.get(),
        "writes": counts.writes.get(),
        "write_bytes": counts.write_bytes.get(),
        "flushes": counts.flushes.get(),
        "discards": counts.discards.get(),
        "errors": counts.errors.get(),
    })
}

/// A line of metrics, with those of Firecracker's fields that there is something to say of.
pub(super) fn metrics_line(disks: &[(String, &DiskCounts)]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let of = |counts: &[&DiskCounts]| {
        let sum = |field: fn(&DiskCounts) -> u64| counts.iter().map(|counts| field(counts)).sum();
        let fields: [(&str, u64); 6] = [
            ("read_count", sum(|counts| counts.reads.get())),
            ("read_bytes", sum(|counts| counts.read_bytes.get())),
            ("write_count", sum(|counts| counts.writes.get())),
            ("write_bytes", sum(|counts| counts.write_bytes.get())),
            ("flush_count", sum(|counts| counts.flushes.get())),
            ("execute_fails", sum(|counts| counts.errors.get())),
        ];
        json!(BTreeMap::from(fields))
    };
    let all: Vec<&DiskCounts> = disks.iter().map(|(_, counts)| *counts).collect();
    let mut line = json!({ "utc_timestamp_ms": now.as_millis() as u64, "block": of(&all) });
    for (id, counts) in disks {
        line[format!("block_{id}")] = of(&[counts]);
    }
    format!("{line}\n")
}

//! How many requests there were, by their resource: fields of metrics (Firecracker's src/vmm/src/logger/metrics.rs).

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::http::Method::{self, Get, Patch, Put};

/// A method and the first part of a path; how the names of their fields begin.
const COUNTED: [(Method, &str, &str); 24] = [
    (Get, "", "instance_info"),
    (Get, "machine-config", "machine_cfg"),
    (Get, "mmds", "mmds"),
    (Get, "version", "vmm_version"),
    (Get, "hotplug", "hotplug_memory"),
    (Put, "actions", "actions"),
    (Put, "boot-source", "boot_source"),
    (Put, "drives", "drive"),
    (Put, "logger", "logger"),
    (Put, "machine-config", "machine_cfg"),
    (Put, "cpu-config", "cpu_cfg"),
    (Put, "metrics", "metrics"),
    (Put, "network-interfaces", "network"),
    (Put, "mmds", "mmds"),
    (Put, "vsock", "vsock"),
    (Put, "pmem", "pmem"),
    (Put, "serial", "serial"),
    (Put, "hotplug", "hotplug_memory"),
    (Patch, "drives", "drive"),
    (Patch, "network-interfaces", "network"),
    (Patch, "machine-config", "machine_cfg"),
    (Patch, "mmds", "mmds"),
    (Patch, "hotplug", "hotplug_memory"),
    (Patch, "pmem", "pmem"),
];

/// Counts since they were last taken, by one thread; others may count meanwhile.
#[derive(Default)]
pub(super) struct RequestCounts {
    arrived: [AtomicU64; COUNTED.len()],
    failed: [AtomicU64; COUNTED.len()],
    deprecated: AtomicU64,
}

impl RequestCounts {
    /// A request has arrived; returns the place of its counts.
    pub fn arrived(&self, method: Method, path: &str) -> Option<usize> {
        let first = path.trim_matches('/').split(['/', '?']).next().unwrap_or("");
        let place = COUNTED.iter().position(|(m, part, _)| (*m, *part) == (method, first))?;
        self.arrived[place].fetch_add(1, Ordering::Relaxed);
        Some(place)
    }

    /// The request of `place` was answered.
    pub fn answered(&self, place: Option<usize>, failed: bool, deprecated: bool) {
        if let Some(place) = place.filter(|_| failed) {
            self.failed[place].fetch_add(1, Ordering::Relaxed);
        }
        self.deprecated.fetch_add(deprecated.into(), Ordering::Relaxed);
    }

    /// Moves the counts into a line of metrics.
    pub fn take(&self, line: &mut Value) {
        let take = |count: &AtomicU64| Value::from(count.swap(0, Ordering::Relaxed));
        for (place, (method, _, name)) in COUNTED.iter().enumerate() {
            let group = match method {
                Get => "get_api_requests",
                Put => "put_api_requests",
                Patch => "patch_api_requests",
            };
            line[group][format!("{name}_count")] = take(&self.arrived[place]);
            if *method != Get {
                line[group][format!("{name}_fails")] = take(&self.failed[place]);
            }
        }
        line["deprecated_api"]["deprecated_http_api_calls"] = take(&self.deprecated);
    }
}

//! Lines of metrics, with Firecracker's fields (its src/vmm/src/logger/metrics.rs): counts since the line before, and
//! the last measurements. Fields that tinyvmm does not count are 0.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::requests::RequestCounts;
use crate::config::StartTimes;
use crate::inbox::End;
use crate::signals;
use tinyvmm::devices::output::Output;
use tinyvmm::virtio::disk_counts::DiskCounts;
use tinyvmm::virtio::net_counts::NetCounts;
use tinyvmm::virtio::vsock_counts::VsockCounts;
use vmm_sys_util::metric::Metric;

/// The interval of lines.
const EVERY: Duration = Duration::from_secs(60);

/// A field of a device, and its counter.
type Field<T> = (&'static str, fn(&T) -> u64);
const DISK: [Field<DiskCounts>; 7] = [
    ("read_count", |disk| disk.reads.count()),
    ("read_bytes", |disk| disk.read_bytes.count()),
    ("write_count", |disk| disk.writes.count()),
    ("write_bytes", |disk| disk.write_bytes.count()),
    ("flush_count", |disk| disk.flushes.count()),
    ("execute_fails", |disk| disk.errors.count()),
    ("rate_limiter_throttled_events", |disk| disk.throttled.count()),
];
const CARD: [Field<NetCounts>; 10] = [
    ("rx_bytes_count", |card| card.rx_bytes.count()),
    ("rx_packets_count", |card| card.rx_frames.count()),
    ("rx_count", |card| card.rx_frames.count()),
    ("rx_fails", |card| card.rx_dropped.count()),
    ("rx_rate_limiter_throttled", |card| card.rx_throttled.count()),
    ("tx_bytes_count", |card| card.tx_bytes.count()),
    ("tx_packets_count", |card| card.tx_frames.count()),
    ("tx_count", |card| card.tx_frames.count()),
    ("tx_fails", |card| card.tx_dropped.count()),
    ("tx_rate_limiter_throttled", |card| card.tx_throttled.count()),
];

const SERIAL: [Field<Output>; 1] =
    [("rate_limiter_dropped_bytes", |console| console.beyond_limit())];
const VSOCK: [Field<VsockCounts>; 6] = [
    ("rx_packets_count", |vsock| vsock.rx_packets.count()),
    ("rx_bytes_count", |vsock| vsock.rx_bytes.count()),
    ("tx_packets_count", |vsock| vsock.tx_packets.count()),
    ("tx_bytes_count", |vsock| vsock.tx_bytes.count()),
    ("conns_added", |vsock| vsock.added.count()),
    ("conns_removed", |vsock| vsock.removed.count()),
];

/// The counters of devices, with the devices' names.
pub(super) struct Counters<'a> {
    pub disks: Vec<(String, &'a DiskCounts)>,
    pub cards: Vec<(String, &'a NetCounts)>,
    pub vsock: Option<&'a VsockCounts>,
    pub console: Option<&'a Output>,
}

/// All groups and their fields: clients refuse a line that lacks one.
const FIELDS: &str = include_str!("metrics.txt");

/// The destination of metrics.
pub(super) struct Metrics {
    file: File,
    requests: Arc<RequestCounts>,
    /// When the next line is due; `None` before the machine has started.
    due: Option<Instant>,
    /// The counts in the line before.
    counted: BTreeMap<String, Vec<u64>>,
    /// A line could not be written, and that was logged.
    failed: bool,
    /// The machine's, in its last line.
    pub end: Option<End>,
}

/// Measurements in microseconds.
#[derive(Default)]
pub(super) struct Latencies {
    pub pause_us: u64,
    pub resume_us: u64,
    pub save_us: u64,
    pub save_diff_us: u64,
    /// From the start of the process, as its parent has given it, until the API is served.
    pub startup_us: u64,
    pub startup_cpu_us: u64,
}

impl Latencies {
    /// To be called when the API is about to be served.
    pub(super) fn since(start: StartTimes) -> Self {
        let now = |clock| {
            let time = Duration::try_from(clock_gettime(clock)).unwrap_or_default();
            micros(time)
        };
        let wall = start.wall.map(|start| now(ClockId::Monotonic).saturating_sub(start));
        let cpu = start.cpu.map(|start| now(ClockId::ProcessCPUTime).saturating_sub(start));
        Self {
            startup_us: wall.unwrap_or(0),
            startup_cpu_us: cpu.map_or(0, |cpu| cpu.saturating_add(start.parent_cpu.unwrap_or(0))),
            ..Self::default()
        }
    }
}

/// `time` in whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Metrics {
    pub(super) fn new(file: File, requests: Arc<RequestCounts>) -> Self {
        Self { file, requests, due: None, counted: BTreeMap::new(), failed: false, end: None }
    }

    /// When a line is due; the machine has started by `now`.
    pub(super) fn due(&mut self, now: Instant) -> Instant {
        *self.due.get_or_insert(now + EVERY)
    }

    /// Whether a line is due; then the next one is due an interval later.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due(now) <= now;
        if is_due {
            self.due = Some(now + EVERY);
        }
        is_due
    }

    /// Writes a line if the file takes it without blocking.
    pub(super) fn write(&mut self, counters: &Counters, measured: &Latencies) -> Result<()> {
        let line = format!("{}\n", self.line(counters, measured));
        let written = self.file.write(line.as_bytes()).context("cannot write metrics")?;
        anyhow::ensure!(written == line.len(), "cannot write all of the metrics");
        Ok(())
    }

    /// Writes a line of the interval; logs the first failure.
    pub(super) fn write_unasked(&mut self, counters: &Counters, measured: &Latencies) {
        if let Err(error) = self.write(counters, measured)
            && !std::mem::replace(&mut self.failed, true)
        {
            log::warn!("{error:#}");
        }
    }

    /// Counts begin at zero: the guest has reset.
    pub(super) fn forget(&mut self) {
        self.counted.clear();
    }

    fn line(&mut self, counters: &Counters, measured: &Latencies) -> Value {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let groups = FIELDS.lines().filter_map(|line| line.split_once(": "));
        let mut line: Value =
            groups.map(|(name, fields)| (name.to_owned(), zeroes(fields))).collect();
        line["utc_timestamp_ms"] = Value::from(now.as_millis() as u64);
        for (group, name, value) in [
            ("api_server", "process_startup_time_us", measured.startup_us),
            ("api_server", "process_startup_time_cpu_us", measured.startup_cpu_us),
            ("latencies_us", "full_create_snapshot", measured.save_us),
            ("latencies_us", "vmm_full_create_snapshot", measured.save_us),
            ("latencies_us", "diff_create_snapshot", measured.save_diff_us),
            ("latencies_us", "vmm_diff_create_snapshot", measured.save_diff_us),
            ("latencies_us", "pause_vm", measured.pause_us),
            ("latencies_us", "vmm_pause_vm", measured.pause_us),
            ("latencies_us", "resume_vm", measured.resume_us),
            ("latencies_us", "vmm_resume_vm", measured.resume_us),
        ] {
            line[group][name] = Value::from(value);
        }
        if let Some(End::Killed(signal)) = self.end
            && let Some((_, name)) = signals::intercepted(signal)
        {
            line["signals"][name] = 1.into();
        }
        self.requests.take(&mut line);
        self.count(&mut line, "block", &DISK, &counters.disks);
        self.count(&mut line, "net", &CARD, &counters.cards);
        // A machine has one at most: its sum is all of it.
        let vsock: Vec<_> =
            counters.vsock.into_iter().map(|vsock| (String::new(), vsock)).collect();
        self.count(&mut line, "vsock", &VSOCK, &vsock);
        let console: Vec<_> =
            counters.console.into_iter().map(|console| (String::new(), console)).collect();
        self.count(&mut line, "uart", &SERIAL, &console);
        line
    }

    /// Fills a group in for each of `devices`, and that of their sum.
    fn count<T>(
        &mut self,
        line: &mut Value,
        group: &str,
        fields: &[Field<T>],
        devices: &[(String, &T)],
    ) {
        let none = line[group].take();
        let filled = |figures: &[u64]| {
            let mut all = none.clone();
            fields
                .iter()
                .zip(figures)
                .for_each(|((name, _), figure)| all[*name] = (*figure).into());
            all
        };
        let mut sum = vec![0; fields.len()];
        for (id, counts) in devices {
            let name = format!("{group}_{id}");
            let counted = self.counted.entry(name.clone()).or_default();
            counted.resize(fields.len(), 0);
            let mut more = Vec::new();
            for ((_, count), counted) in fields.iter().zip(counted) {
                let before = std::mem::replace(counted, count(counts));
                more.push(counted.saturating_sub(before));
            }
            sum.iter_mut().zip(&more).for_each(|(sum, more)| *sum += more);
            if !id.is_empty() {
                line[name] = filled(&more);
            }
        }
        line[group] = filled(&sum);
    }
}

/// Fields of these names, all zero.
fn zeroes(fields: &str) -> Value {
    let zero = |name: &str| match name.ends_with("_agg") {
        true => json!({ "min_us": 0, "max_us": 0, "sum_us": 0 }),
        false => Value::from(0),
    };
    fields.split(' ').map(|name| (name.to_owned(), zero(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::Method;

    #[test]
    fn a_line_is_due_each_minute_after_the_start() {
        let mut metrics = Metrics::new(File::open("/dev/null").unwrap(), Arc::default());
        let start = Instant::now();
        assert_eq!(metrics.due(start), start + Duration::from_secs(60));
        assert!(!metrics.take_due(start + Duration::from_secs(59)));
        assert!(metrics.take_due(start + Duration::from_secs(61)));
        assert!(!metrics.take_due(start + Duration::from_secs(62)));
        assert_eq!(metrics.due(start), start + Duration::from_secs(121));
    }

    #[test]
    fn a_line_counts_what_was_since_the_line_before() {
        let mut metrics = Metrics::new(File::open("/dev/null").unwrap(), Arc::default());
        let (a, b, measured) = (DiskCounts::default(), DiskCounts::default(), Latencies::default());
        let card = NetCounts::default();
        let mut line = || {
            let disks = vec![("a".into(), &a), ("b".into(), &b)];
            metrics.line(
                &Counters { disks, cards: vec![("a".into(), &card)], vsock: None, console: None },
                &measured,
            )
        };
        card.tx_bytes.add(60);
        a.reads.add(2);
        a.read_bytes.add(1024);
        b.reads.add(1);
        let first = line();
        assert_eq!(first["block_a"]["read_count"], 2);
        assert_eq!(
            (&first["block"]["read_count"], &first["block"]["read_bytes"]),
            (&3.into(), &1024.into())
        );
        assert_eq!(first["net_a"]["tx_bytes_count"], 60);
        b.reads.add(4);
        card.tx_bytes.add(61);
        let second = line();
        assert_eq!(
            (&second["block_a"]["read_count"], &second["block_b"]["read_count"]),
            (&0.into(), &4.into())
        );
        assert_eq!(second["block"]["read_count"], 4);
        assert_eq!(second["net"]["tx_bytes_count"], 61);
        // Fields that tinyvmm does not count are present.
        assert_eq!(second["block_b"]["write_agg"]["max_us"], 0);
        assert_eq!(second["vsock"]["rx_read_fails"], 0);
    }

    #[test]
    fn requests_are_counted_by_their_resource_and_only_fields_of_the_table_are_there() {
        let requests = Arc::new(RequestCounts::default());
        let mut metrics = Metrics::new(File::open("/dev/null").unwrap(), requests.clone());
        let mut line = || {
            let counters =
                Counters { disks: Vec::new(), cards: Vec::new(), vsock: None, console: None };
            metrics.line(&counters, &Latencies::default())
        };
        let place = requests.arrived(Method::Put, "/drives/a");
        requests.answered(place, true, true);
        let place = requests.arrived(Method::Put, "/drives/b");
        requests.answered(place, false, false);
        requests.arrived(Method::Get, "/");
        requests.arrived(Method::Get, "/nowhere");
        let counted = line();
        assert_eq!(counted["put_api_requests"]["drive_count"], 2);
        assert_eq!(counted["put_api_requests"]["drive_fails"], 1);
        assert_eq!(counted["get_api_requests"]["instance_info_count"], 1);
        assert_eq!(counted["deprecated_api"]["deprecated_http_api_calls"], 1);
        assert_eq!(line()["put_api_requests"]["drive_count"], 0);
        // A name that the table lacks would have been added.
        for (group, fields) in FIELDS.lines().filter_map(|line| line.split_once(": ")) {
            assert_eq!(
                counted[group].as_object().unwrap().len(),
                fields.split(' ').count(),
                "{group}"
            );
        }
    }

    #[test]
    fn a_start_in_the_past_is_reported_and_one_in_the_future_is_not() {
        let counted =
            Latencies::since(StartTimes { wall: Some(0), cpu: Some(0), parent_cpu: Some(1 << 40) });
        assert!(counted.startup_us > 0 && counted.startup_cpu_us > 1 << 40);
        let times = StartTimes { wall: Some(u64::MAX), cpu: Some(u64::MAX), parent_cpu: None };
        let counted = Latencies::since(times);
        assert_eq!((counted.startup_us, counted.startup_cpu_us), (0, 0));
    }
}

//! The destinations of messages and metrics.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use log::LevelFilter;

use super::super::setup::Setup;
use super::Api;
use crate::api::FIRECRACKER_VERSION;
use crate::api::bodies::{self, Logger};
use crate::api::metrics::{Counters, Latencies, Metrics};
use crate::config::FirecrackerConfig;
use crate::inbox::End;
use crate::logger;
use tinyvmm::machine::{Handles, LiveMachine, Machine};

impl Api {
    /// Applies the flags that Firecracker has for messages and metrics.
    pub(super) fn adopt(&mut self, flags: &FirecrackerConfig) -> Result<()> {
        if let Some(path) = &flags.log_path {
            logger::also_to(Some(create(path).context("--log-path")?), None, None, &self.id);
        }
        log::info!("Running Firecracker v{FIRECRACKER_VERSION}");
        log::info!("This is tinyvmm {}", env!("CARGO_PKG_VERSION"));
        if flags.wants_pci {
            log::warn!(
                "--enable-pci: devices stay on virtio-mmio, for which the guest's kernel needs CONFIG_VIRTIO_MMIO"
            );
        }
        if let Some(path) = &flags.metrics_path {
            let metrics = bodies::MetricsBody { metrics_path: path.clone() };
            self.set_metrics(metrics).context("--metrics-path")?;
        }
        self.measured = Latencies::since(flags.start);
        Ok(())
    }

    /// PUT /logger.
    pub(super) fn set_logger(&mut self, body: Logger) -> Result<()> {
        body.check()?;
        let level = body.level.as_deref().map(logger::level).transpose()?;
        let file = body.log_path.as_deref().map(create).transpose()?;
        logger::also_to(file, body.show_level, body.show_log_origin, &self.id);
        // With a file the level is Firecracker's default, not stderr's; an earlier choice stays.
        let default = (body.log_path.is_some() && !self.has_log).then_some(LevelFilter::Info);
        if let Some(level) = level.or(default) {
            log::set_max_level(level);
        }
        self.has_log = true;
        Ok(())
    }

    /// PUT /metrics.
    pub(super) fn set_metrics(&mut self, body: bodies::MetricsBody) -> Result<()> {
        ensure!(self.metrics.is_none(), "Reinitialization of metrics not allowed.");
        let file = create(&body.metrics_path)?;
        self.metrics = Some(Metrics::new(file, self.requests.clone()));
        Ok(())
    }

    /// PUT /actions, FlushMetrics.
    pub(super) fn flush_metrics(&mut self, machine: &LiveMachine) -> Result<()> {
        let counters = named(&self.setup, machine.handles());
        let metrics = self.metrics.as_mut().context("metrics have no file: PUT /metrics first")?;
        metrics.write(&counters, &self.measured)
    }

    /// Writes a line of metrics that no client has asked for.
    pub(super) fn write_metrics(&mut self, machine: &LiveMachine) {
        if let Some(metrics) = &mut self.metrics {
            metrics.write_unasked(&named(&self.setup, machine.handles()), &self.measured);
        }
    }

    /// When the running machine's next metrics are due, if they have a destination.
    pub fn metrics_due(&mut self) -> Option<Instant> {
        self.metrics.as_mut().map(|metrics| metrics.due(Instant::now()))
    }

    /// Writes the metrics that are due; false if none are.
    pub fn write_due_metrics(&mut self, machine: &LiveMachine) -> bool {
        let Some(metrics) = &mut self.metrics else { return false };
        let is_due = metrics.take_due(Instant::now());
        if is_due {
            self.write_metrics(machine);
        }
        is_due
    }

    /// Writes the last metrics of a machine that has ended or resets.
    pub fn write_last_metrics(&mut self, machine: &Machine, end: &End) {
        if let Some(metrics) = &mut self.metrics {
            metrics.end = Some(end.clone());
            let counters = named(&self.setup, Some(machine.handles()));
            metrics.write_unasked(&counters, &self.measured);
            metrics.forget();
        }
    }
}

/// The counters of each device, with its name.
fn named<'a>(setup: &Setup, handles: Option<&'a Handles>) -> Counters<'a> {
    let (disks, cards) = handles.map_or((&[][..], &[][..]), |all| (&all.disks, &all.cards));
    Counters {
        disks: setup.drive_ids().into_iter().zip(disks.iter().map(|disk| &**disk)).collect(),
        vsock: handles.and_then(|all| all.vsock.as_deref()),
        console: handles.map(|all| &all.output),
        cards: setup.interface_ids().zip(cards.iter().map(|card| &**card)).collect(),
    }
}

/// Opens a file or named pipe to append lines to.
fn create(path: &Path) -> Result<File> {
    // O_NONBLOCK and reading: a named pipe may have no reader yet. Lines without a reader are lost.
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    options.open(path).with_context(|| format!("cannot write to {}", path.display()))
}

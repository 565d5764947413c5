//! What the machine's owner does for clients of the API.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use log::LevelFilter;
use serde_json::{Map, Value, json};

use super::bodies::{Logger, Metrics, VmState};
use super::routes::{Configure, Control as Order, Request, Subject};
use super::setup::{Setup, balloon_size};
use super::stats::{self, MemoryStats, Stats};
use super::{Answer, Call, FIRECRACKER_VERSION, config_file};
use crate::config::MachineConfig;
use crate::event::Halt;
use crate::layout;
use crate::logger::{self, LogFile};
use crate::machine::started::Started;
use crate::memory::GuestRam;
use crate::report::Usage;
use crate::timeline::Timeline;
use crate::virtio::balloon_handle::BalloonHandle;

/// What the owner of a machine knows for the API.
pub struct Control {
    setup: Setup,
    id: String,
    /// What clients were told that it does: as they have said it.
    logger: Option<Logger>,
    metrics: Option<(Metrics, File)>,
    /// Bytes of memory that clients want plugged.
    requested: u64,
    /// `None` without an API.
    usage: Option<Usage>,
    timeline: Timeline,
}

impl Control {
    /// For the machine that flags or `--config-file` describe, and that clients may add to.
    pub fn new(config: &MachineConfig, timeline: &Timeline) -> Result<Self> {
        let mut control = Self {
            setup: Setup::new(config),
            id: config.id.clone(),
            logger: None,
            metrics: None,
            requested: 0,
            usage: config.api_sock.as_ref().map(|_| Usage::open()).transpose()?,
            timeline: timeline.clone(),
        };
        if let Some(path) = &config.config_file {
            let named = || format!("--config-file {}", path.display());
            let steps = config_file::read(path).with_context(named)?;
            steps.into_iter().try_for_each(|what| control.configure(what)).with_context(named)?;
        }
        Ok(control)
    }

    /// Whether the machine can be started without a client's help.
    pub fn is_complete(&self) -> bool {
        self.setup.check_complete().is_ok()
    }

    /// What clients have said to a machine that has started, for one that starts again.
    pub fn tell_again(&self, machine: &Started) -> Result<()> {
        if let (Some(balloon), Some(target)) = (machine.balloon(), self.config().balloon_target()) {
            balloon.set_target(target)?;
        }
        machine.memory().map_or(Ok(()), |memory| memory.request(self.requested))
    }

    /// The machine as it is described so far.
    pub fn config(&self) -> MachineConfig {
        self.setup.config()
    }

    /// Serves `call` before there is a machine. Given back, it wants one, and nothing is missing. Or it wants the end.
    pub fn serve_before(&mut self, call: Call) -> Option<Result<Call, Halt>> {
        let answer = match &call.request {
            Request::Start => match self.setup.check_complete() {
                Ok(()) => return Some(Ok(call)),
                Err(error) => Answer::Fault(format!("{error:#}")),
            },
            Request::Tell(subject) => self.tell_before(*subject).into(),
            Request::Configure(what) => self.configure((**what).clone()).into(),
            Request::ResizeBalloon(update) => self.setup.resize_balloon(update.amount_mib).into(),
            Request::PollBalloon(update) => {
                self.setup.poll_balloon(update.stats_polling_interval_s).into()
            }
            Request::Control(Order::Stop) => {
                call.answer(Answer::Done);
                return Some(Err(Halt::StoppedByApi));
            }
            Request::Control(_) | Request::ResizeMemory(_) => {
                Answer::Fault("the machine has not started yet".into())
            }
        };
        call.answer(answer);
        None
    }

    /// Serves `call` for a machine that has started; returns its end, if that is asked for.
    pub fn serve(&mut self, call: Call, machine: &mut Started, ram: &GuestRam) -> Option<Halt> {
        let answer = match &call.request {
            Request::Start => Answer::Fault("the machine has started already".into()),
            Request::Configure(_) => {
                Answer::Fault("the machine has started: this can be said only before".into())
            }
            Request::Tell(subject) => self.tell(*subject, machine, ram).into(),
            Request::ResizeBalloon(update) => self.resize(update.amount_mib, machine).into(),
            Request::ResizeMemory(update) => {
                self.resize_memory(update.requested_size_mib, machine).into()
            }
            Request::PollBalloon(update) => {
                self.setup.poll_balloon(update.stats_polling_interval_s).into()
            }
            Request::Control(Order::Stop) => {
                call.answer(Answer::Done);
                return Some(Halt::StoppedByApi);
            }
            Request::Control(order) => self.obey(order, machine).into(),
        };
        call.answer(answer);
        // A machine that could not be started again.
        machine.is_lost().then(|| Halt::Internal("the machine cannot go on".into()))
    }

    fn obey(&mut self, order: &Order, machine: &mut Started) -> Result<()> {
        match order {
            Order::Stop => Ok(()),
            Order::PressPowerButton => machine.press_power_button(),
            Order::FlushMetrics => self.flush_metrics(machine),
            Order::State(VmState::Paused) => machine.pause(),
            Order::State(VmState::Resumed) => machine.resume(),
            Order::Drive(drive) => {
                let known = disk_ids(&self.config());
                ensure!(known.contains(&drive.drive_id), "there is no such drive");
                drive.check()
            }
        }
    }

    fn configure(&mut self, what: Configure) -> Result<()> {
        match what {
            Configure::Logger(logger) => self.set_logger(logger),
            Configure::Metrics(metrics) => {
                ensure!(self.metrics.is_none(), "metrics go somewhere already");
                let file = create(&metrics.metrics_path)?;
                self.metrics = Some((metrics, file));
                Ok(())
            }
            what => self.setup.change(what),
        }
    }

    fn set_logger(&mut self, body: Logger) -> Result<()> {
        body.check()?;
        let level = body.level.as_deref().map(level).transpose()?;
        if let Some(path) = &body.log_path {
            let (show_level, show_origin) = (body.show_level, body.show_log_origin);
            let file = create(path)?;
            let file = LogFile { file, show_level, show_origin, id: self.id.clone() };
            ensure!(logger::also_to(file), "log_path: messages go to a file already");
        }
        if let Some(level) = level.or(body.log_path.is_some().then_some(LevelFilter::Info)) {
            log::set_max_level(level);
        }
        self.logger = Some(body);
        Ok(())
    }

    /// What is the same before and after the start.
    fn tell_any(&self, subject: Subject, state: &str) -> Result<Value> {
        Ok(match subject {
            Subject::Instance => json!({
                "app_name": "tinyvmm",
                "id": self.id,
                "state": state,
                "vmm_version": env!("CARGO_PKG_VERSION"),
            }),
            Subject::Version => json!({ "firecracker_version": FIRECRACKER_VERSION }),
            Subject::Machine => serde_json::to_value(self.setup.machine())?,
            Subject::Balloon => serde_json::to_value(self.setup.balloon()?)?,
            Subject::Memory => {
                let memory =
                    self.setup.memory().context("the machine has no room for more memory")?;
                json!({
                    "total_size_mib": memory.total_size_mib,
                    "block_size_mib": memory.block_size_mib,
                    "slot_size_mib": memory.slot_size_mib,
                    "requested_size_mib": self.requested / layout::MIB,
                    "plugged_size_mib": 0,
                })
            }
            Subject::All => {
                let mut all = self.setup.all()?;
                all["logger"] = serde_json::to_value(&self.logger)?;
                all["metrics"] = json!(self.metrics.as_ref().map(|(metrics, _)| metrics));
                all
            }
            Subject::BootReport => json!({ "marks": self.timeline.reached() }),
            Subject::BalloonStatistics | Subject::Stats => {
                bail!("the machine has not started yet")
            }
        })
    }

    fn tell_before(&self, subject: Subject) -> Result<Value> {
        self.tell_any(subject, "Not started")
    }

    fn tell(&mut self, subject: Subject, machine: &Started, ram: &GuestRam) -> Result<Value> {
        match subject {
            Subject::Stats => self.stats(machine, ram),
            Subject::BalloonStatistics => {
                ensure!(
                    self.config().balloon_features.statistics,
                    "statistics are off: stats_polling_interval_s of PUT /balloon turns them on"
                );
                balloon_statistics(handle(machine)?)
            }
            Subject::Memory => {
                let mut told = self.tell_any(subject, machine.state())?;
                told["plugged_size_mib"] = (plugged(machine) / layout::MIB).into();
                Ok(told)
            }
            subject => self.tell_any(subject, machine.state()),
        }
    }

    fn stats(&mut self, machine: &Started, ram: &GuestRam) -> Result<Value> {
        let config = self.config();
        let disks = disk_ids(&config);
        let disks = disks.iter().zip(machine.disks()).map(|(id, counts)| stats::disk(id, counts));
        let balloon = machine.balloon().map_or(0, BalloonHandle::actual);
        let memory = MemoryStats {
            configured: config.mem.bytes() >> 10,
            plugged: plugged(machine) >> 10,
            balloon: balloon >> 10,
            used: self.usage.as_mut().map(|usage| usage.memory(ram)).unwrap_or_default(),
        };
        Ok(serde_json::to_value(Stats {
            state: machine.state(),
            memory_kib: memory,
            exits: self.timeline.exits(),
            disks: disks.collect(),
            cpu_ms: stats::cpu_ms(machine.cpu_times()),
        })?)
    }

    fn resize(&mut self, mib: u64, machine: &Started) -> Result<()> {
        let size = balloon_size(mib, &self.config())?;
        handle(machine)?.set_target(size.bytes())?;
        self.setup.resize_balloon(mib)
    }

    fn resize_memory(&mut self, mib: u64, machine: &Started) -> Result<()> {
        let memory = machine.memory().context("the machine has no room for more memory")?;
        let bytes = mib.saturating_mul(layout::MIB);
        memory.request(bytes).context("requested_size_mib")?;
        self.requested = bytes;
        Ok(())
    }

    fn flush_metrics(&mut self, machine: &Started) -> Result<()> {
        let ids = disk_ids(&self.config());
        let (_, file) = self.metrics.as_mut().context("metrics go nowhere: PUT /metrics first")?;
        let disks: Vec<_> = ids.into_iter().zip(machine.disks().map(|counts| &**counts)).collect();
        file.write_all(stats::metrics_line(&disks).as_bytes()).context("cannot write metrics")
    }
}

fn handle(machine: &Started) -> Result<&BalloonHandle> {
    machine.balloon().context("the machine has no balloon")
}

/// Bytes of memory that the guest has plugged.
fn plugged(machine: &Started) -> u64 {
    machine.memory().map_or(0, |memory| memory.status().plugged)
}

/// The disks' names, in their order.
fn disk_ids(config: &MachineConfig) -> Vec<String> {
    let name = |index: usize| format!("disk{index}");
    let disks = config.disk.iter().enumerate();
    disks.map(|(index, disk)| disk.id.clone().unwrap_or_else(|| name(index))).collect()
}

/// What the guest has told last; newer statistics are asked for, for the next time.
fn balloon_statistics(balloon: &BalloonHandle) -> Result<Value> {
    balloon.refresh_statistics();
    let (target, actual) = (balloon.target(), balloon.actual());
    let mut answer = Map::new();
    let mut tell = |name: &str, value: u64| answer.insert(name.to_owned(), value.into());
    tell("target_pages", target / 4096);
    tell("actual_pages", actual / 4096);
    tell("target_mib", target / layout::MIB);
    tell("actual_mib", actual / layout::MIB);
    for (name, value) in balloon.statistics().iter().flat_map(|statistics| statistics.iter()) {
        tell(name, value);
    }
    Ok(answer.into())
}

/// A file or named pipe to add lines to.
fn create(path: &Path) -> Result<File> {
    // O_NONBLOCK: a named pipe without a reader is to be refused, not to be waited for.
    let mut options = OpenOptions::new();
    let options =
        options.append(true).create(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    options.open(path).with_context(|| format!("cannot write to {}", path.display()))
}

fn level(name: &str) -> Result<LevelFilter> {
    let name = if name.eq_ignore_ascii_case("warning") { "warn" } else { name };
    let found = name.parse();
    found
        .ok()
        .with_context(|| format!("level {name}: say Error, Warning, Info, Debug, Trace or Off"))
}

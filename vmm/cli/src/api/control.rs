//! What the machine's owner does for clients of the API.

mod outputs;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::bodies::{Logger, PartialDrive, VmState};
use super::metrics::{Measured, Metrics, micros};
use super::routes::{Configure, Control as Order, Request, Subject};
use super::setup::{Setup, balloon_size, disk};
use super::stats::{self, MemoryStats, Stats};
use super::{Answer, ApiServer, Call, FIRECRACKER_VERSION, config_file};
use crate::config::Config;
use crate::disks;
use crate::inbox::End;
use crate::measure::Record;
use crate::report::Usage;
use tinyvmm::event::Halt;
use tinyvmm::layout;
use tinyvmm::machine::{Handles, LiveMachine, Machine};
use tinyvmm::memory::GuestRam;
use tinyvmm::virtio::balloon_handle::BalloonHandle;
use tinyvmm::virtio::rate::Limiter;

/// The API of this process: what the machine's owner knows for it, and its socket, which is not there where only a file
/// describes the machine.
pub struct Api {
    pub(super) server: Option<ApiServer>,
    pub(super) setup: Setup,
    id: String,
    /// What clients were told that it does: as they have said it.
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    measured: Measured,
    /// Files can be opened while the machine runs.
    pub(super) may_open: bool,
    /// Bytes of memory that clients want plugged.
    requested: u64,
    /// `None` without an API.
    usage: Option<Usage>,
    record: Arc<Record>,
}

impl Api {
    /// For the machine that flags or `--config-file` describe, and that clients may add to.
    pub fn new(config: &Config, record: &Arc<Record>) -> Result<Self> {
        let process = &config.process;
        let mut api = Self {
            server: None,
            setup: Setup::new(config),
            id: process.id.clone(),
            logger: None,
            metrics: None,
            measured: Measured::default(),
            may_open: false,
            requested: 0,
            usage: process.api_sock.as_ref().map(|_| Usage::open()).transpose()?,
            record: record.clone(),
        };
        if let Some(flags) = &process.firecracker {
            api.adopt(flags)?;
        }
        if let Some(path) = &process.config_file {
            let named = || format!("--config-file {}", path.display());
            let steps = config_file::read(path).with_context(named)?;
            steps.into_iter().try_for_each(|what| api.configure(what)).with_context(named)?;
        }
        Ok(api)
    }

    /// Whether the machine can be started without a client's help.
    pub fn is_complete(&self) -> bool {
        self.setup.check_complete().is_ok()
    }

    /// Repeats to a machine that starts again what clients have said since it started first.
    pub fn configure_again(&self, machine: &mut Machine) -> Result<()> {
        let config = self.config().machine.0;
        for (index, disk) in config.disk.iter().enumerate() {
            let limiter = Limiter::new(&disk.limit, Instant::now());
            machine.change_disk(index, |block| {
                block.limiter = limiter;
                Ok(())
            })?;
        }
        if let (Some(balloon), Some(target)) = (&machine.handles().balloon, config.balloon_target())
        {
            balloon.set_target(target)?;
        }
        let memory = machine.handles().memory.as_ref();
        memory.map_or(Ok(()), |memory| memory.request(self.requested))
    }

    /// The machine as it is described so far.
    pub fn config(&self) -> Config {
        self.setup.config()
    }

    /// Serves `call` before there is a machine. Given back, it wants one, and nothing is missing. Or it wants the end.
    pub fn serve_before(&mut self, call: Call) -> Option<Result<Call, End>> {
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
                return Some(Err(End::Api));
            }
            Request::Control(_) | Request::ResizeMemory(_) => {
                Answer::Fault("the machine has not started yet".into())
            }
        };
        call.answer(answer);
        None
    }

    /// Serves `call` for a machine that has started; returns its end, if that is asked for.
    pub(super) fn serve_after(
        &mut self,
        call: Call,
        machine: &mut LiveMachine,
        ram: &GuestRam,
    ) -> Option<End> {
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
                return Some(End::Api);
            }
            Request::Control(order) => self.execute(order, machine).into(),
        };
        call.answer(answer);
        // A machine that could not be started again.
        machine.is_lost().then(|| End::Guest(Halt::Internal("the machine cannot go on".into())))
    }

    fn execute(&mut self, order: &Order, machine: &mut LiveMachine) -> Result<()> {
        match order {
            Order::Stop => Ok(()),
            Order::PressPowerButton => handles(machine)?.press_power_button(),
            Order::FlushMetrics => self.flush_metrics(machine),
            Order::State(state) => self.set_state(*state, machine),
            Order::Drive(drive) => self.change_drive(drive, machine),
        }
    }

    fn change_drive(&mut self, drive: &PartialDrive, machine: &mut LiveMachine) -> Result<()> {
        let id = &drive.drive_id;
        let index = self.setup.drive_ids().iter().position(|known| known == id);
        let index = index.context("there is no such drive")?;
        let mut setup = self.setup.clone();
        if let Some(path) = &drive.path_on_host {
            let known = setup.drive_mut(id).context(
                "path_on_host: this drive is one of flags, and only one that was put here can be exchanged",
            )?;
            ensure!(
                self.may_open,
                "path_on_host: nothing can be opened any more, for this host's kernel has no Landlock or seccomp \
                 filters to keep it to the folders of drives"
            );
            known.path_on_host = Some(path.clone());
            let disk = disk(known).context("path_on_host: there is none")?;
            machine.while_stopped(|machine| {
                machine.change_disk(index, move |block| {
                    block.set_image(disks::replace(block.image(), &disk)?);
                    Ok(())
                })
            })?;
            self.setup = setup.clone();
        }
        if let Some(update) = drive.rate_limiter {
            let limit = setup.update_limit(id, index, update);
            let limiter = Limiter::new(&limit, Instant::now());
            machine.while_stopped(|machine| {
                machine.change_disk(index, |block| {
                    block.limiter = limiter;
                    Ok(())
                })
            })?;
            self.setup = setup;
        }
        Ok(())
    }

    fn set_state(&mut self, state: VmState, machine: &mut LiveMachine) -> Result<()> {
        let start = Instant::now();
        match state {
            VmState::Paused => machine.pause()?,
            VmState::Resumed => machine.resume()?,
        }
        let us = micros(start.elapsed());
        match state {
            VmState::Paused => self.measured.pause_us = us,
            VmState::Resumed => self.measured.resume_us = us,
        }
        Ok(())
    }

    fn configure(&mut self, what: Configure) -> Result<()> {
        match what {
            Configure::Logger(logger) => self.set_logger(logger),
            Configure::Metrics(metrics) => self.set_metrics(metrics),
            what => self.setup.change(what),
        }
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
                all["metrics"] = json!(self.metrics.as_ref().map(|metrics| &metrics.body));
                all
            }
            Subject::BootReport => json!({ "marks": self.record.marks() }),
            Subject::BalloonStatistics | Subject::Stats => {
                bail!("the machine has not started yet")
            }
        })
    }

    fn tell_before(&self, subject: Subject) -> Result<Value> {
        self.tell_any(subject, "Not started")
    }

    fn tell(&mut self, subject: Subject, machine: &LiveMachine, ram: &GuestRam) -> Result<Value> {
        match subject {
            Subject::Stats => self.stats(machine, ram),
            Subject::BalloonStatistics => {
                ensure!(
                    self.config().machine.0.balloon_features.statistics,
                    "statistics are off: stats_polling_interval_s of PUT /balloon turns them on"
                );
                balloon_statistics(balloon(machine)?)
            }
            Subject::Memory => {
                let mut told = self.tell_any(subject, state(machine))?;
                told["plugged_size_mib"] = (plugged(machine) / layout::MIB).into();
                Ok(told)
            }
            subject => self.tell_any(subject, state(machine)),
        }
    }

    fn stats(&mut self, machine: &LiveMachine, ram: &GuestRam) -> Result<Value> {
        let config = self.config();
        let disks = self.setup.drive_ids();
        let handles = handles(machine)?;
        let disks = disks.iter().zip(&handles.disks);
        let disks = disks.map(|(id, disk)| stats::disk(id, disk));
        let balloon = handles.balloon.as_ref().map_or(0, BalloonHandle::actual);
        let memory = MemoryStats {
            configured: config.machine.0.mem.bytes() >> 10,
            plugged: plugged(machine) >> 10,
            balloon: balloon >> 10,
            used: self.usage.as_mut().map(|usage| usage.memory(ram)).unwrap_or_default(),
        };
        Ok(serde_json::to_value(Stats {
            state: state(machine),
            memory_kib: memory,
            exits: self.record.exits(),
            disks: disks.collect(),
            cpu_ms: stats::cpu_ms(machine.cpu_times()),
        })?)
    }

    fn resize(&mut self, mib: u64, machine: &LiveMachine) -> Result<()> {
        let size = balloon_size(mib, &self.config().machine.0)?;
        balloon(machine)?.set_target(size.bytes())?;
        self.setup.resize_balloon(mib)
    }

    fn resize_memory(&mut self, mib: u64, machine: &LiveMachine) -> Result<()> {
        let memory = &handles(machine)?.memory;
        let memory = memory.as_ref().context("the machine has no room for more memory")?;
        let bytes = mib.saturating_mul(layout::MIB);
        memory.request(bytes).context("requested_size_mib")?;
        self.requested = bytes;
        Ok(())
    }
}

fn handles(machine: &LiveMachine) -> Result<&Handles> {
    machine.handles().context("the machine is lost")
}

fn balloon(machine: &LiveMachine) -> Result<&BalloonHandle> {
    handles(machine)?.balloon.as_ref().context("the machine has no balloon")
}

/// Bytes of memory that the guest has plugged.
fn plugged(machine: &LiveMachine) -> u64 {
    let memory = machine.handles().and_then(|handles| handles.memory.as_ref());
    memory.map_or(0, |memory| memory.status().plugged)
}

/// The machine's state by Firecracker's name for it.
fn state(machine: &LiveMachine) -> &'static str {
    if machine.is_paused() { "Paused" } else { "Running" }
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
    for (tag, value) in balloon.statistics().iter().flat_map(|statistics| statistics.iter()) {
        tell(stats::BALLOON[tag], value);
    }
    Ok(answer.into())
}

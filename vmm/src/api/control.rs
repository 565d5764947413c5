//! What the machine's owner does for clients of the API.

mod outputs;

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::bodies::{Logger, PartialDrive, VmState};
use super::metrics::{Measured, Metrics, micros};
use super::routes::{Configure, Control as Order, Request, Subject};
use super::setup::{Setup, balloon_size, disk};
use super::stats::{self, MemoryStats, Stats};
use super::{Answer, Call, FIRECRACKER_VERSION, config_file};
use crate::config::MachineConfig;
use crate::event::Halt;
use crate::jail::landlock::Place;
use crate::layout;
use crate::machine::Machine;
use crate::machine::started::Started;
use crate::memory::GuestRam;
use crate::report::Usage;
use crate::timeline::Timeline;
use crate::virtio::balloon_handle::BalloonHandle;
use crate::virtio::rate::Limiter;

/// What the owner of a machine knows for the API.
pub struct Control {
    setup: Setup,
    id: String,
    /// What clients were told that it does: as they have said it.
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    measured: Measured,
    /// Files can be opened while the machine runs.
    may_open: bool,
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
            measured: Measured::default(),
            may_open: false,
            requested: 0,
            usage: config.api_sock.as_ref().map(|_| Usage::open()).transpose()?,
            timeline: timeline.clone(),
        };
        if let Some(flags) = &config.firecracker {
            control.adopt(flags)?;
        }
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
    pub fn tell_again(&self, machine: &mut Machine) -> Result<()> {
        for (index, disk) in self.config().disk.iter().enumerate() {
            let limiter = Limiter::new(&disk.limit, Instant::now());
            machine.change_disk(index, |block| block.limiter = limiter)?;
        }
        if let (Some(balloon), Some(target)) = (machine.balloon(), self.config().balloon_target()) {
            balloon.set_target(target)?;
        }
        machine.memory().map_or(Ok(()), |memory| memory.request(self.requested))
    }

    /// The machine as it is described so far.
    pub fn config(&self) -> MachineConfig {
        self.setup.config()
    }

    /// Where files are to be opened once the machine runs, if it has an API: for PATCH /drives.
    pub fn places(&self) -> Result<Vec<Place>> {
        let wanted = self.setup.config().api_sock.is_some();
        let places = if wanted { self.setup.places() } else { Ok(Vec::new()) };
        places.context("the folders of drives")
    }

    /// Files can be opened there.
    pub fn may_open(&mut self, may_open: bool) {
        self.may_open = may_open;
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
            Order::State(state) => self.set_state(*state, machine),
            Order::Drive(drive) => self.change_drive(drive, machine),
        }
    }

    fn change_drive(&mut self, drive: &PartialDrive, machine: &mut Started) -> Result<()> {
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
                let mut exchanged = Ok(());
                machine.change_disk(index, |block| {
                    exchanged =
                        block.image().replacement(&disk).map(|image| block.set_image(image));
                })?;
                exchanged
            })?;
            self.setup = setup.clone();
        }
        if let Some(update) = drive.rate_limiter {
            let limit = setup.update_limit(id, index, update);
            let limiter = Limiter::new(&limit, Instant::now());
            machine.while_stopped(|machine| {
                machine.change_disk(index, |block| block.limiter = limiter)
            })?;
            self.setup = setup;
        }
        Ok(())
    }

    fn set_state(&mut self, state: VmState, machine: &mut Started) -> Result<()> {
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
        let disks = self.setup.drive_ids();
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
}

fn handle(machine: &Started) -> Result<&BalloonHandle> {
    machine.balloon().context("the machine has no balloon")
}

/// Bytes of memory that the guest has plugged.
fn plugged(machine: &Started) -> u64 {
    machine.memory().map_or(0, |memory| memory.status().plugged)
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

//! The owner's side of the API: answers requests.

mod changes;
mod outputs;
mod snapshots;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Error, Result, bail, ensure};
use log::Level;
use serde_json::{Map, Value, json};

use super::bodies::VmState;
use super::metrics::{Latencies, Metrics, micros};
use super::requests::RequestCounts;
use super::routes::{ApiRequest, Configure, ControlCommand, Resource};
use super::setup::{Setup, balloon_size};
use super::stats::{self, MemoryStats, Stats};
use super::{ApiCall, ApiResponse, ApiServer, FIRECRACKER_VERSION, config_file};
use crate::config::Config;
use crate::inbox::End;
use crate::logger::{self, log_as_firecracker};
use crate::measure::Record;
use crate::report::Usage;
use crate::snapshot::{self, Restored, Subject};
use tinyvmm::event::Halt;
use tinyvmm::layout;
use tinyvmm::machine::{Handles, LiveMachine, Machine};
use tinyvmm::memory::GuestRam;
use tinyvmm::memory::saved::Extent;
use tinyvmm::rate::Limiter;
use tinyvmm::virtio::balloon_handle::{BalloonHandle, Hinting};

/// The start of Firecracker's words for errors of a machine that a file describes.
const OF_FILE: &str = "Failed to build MicroVM from Json";

/// Firecracker's words (its src/vmm/src/rpc_interface.rs), by which clients find out that they are early or late.
const NOT_BEFORE_START: &str =
    "The requested operation is not supported before starting the microVM.";
const NOT_AFTER_START: &str =
    "The requested operation is not supported after starting the microVM.";

/// The API of this process: the owner's state for it, and its socket, unless only a file describes the machine.
pub struct Api {
    pub(super) server: Option<ApiServer>,
    pub(super) setup: Setup,
    id: String,
    /// Somebody has chosen a destination of messages, or their level.
    has_log: bool,
    metrics: Option<Metrics>,
    pub(super) requests: Arc<RequestCounts>,
    measured: Latencies,
    /// The main thread may open files while the machine runs.
    pub(super) may_open: bool,
    /// What a client has loaded, until the machine is made of it; and the description before.
    restored: Option<Restored>,
    before_load: Option<Setup>,
    starts_paused: bool,
    /// Memory that clients have requested to be plugged, in bytes.
    requested: u64,
    /// `None` without an API, and where /proc is not mounted, as in a chroot.
    usage: Option<Usage>,
    record: Arc<Record>,
}

impl Api {
    /// The API for the machine that flags or `--config-file` describe, and that clients may extend.
    pub fn new(config: &Config, record: &Arc<Record>) -> Result<Self> {
        let process = &config.process;
        let mut api = Self {
            server: None,
            setup: Setup::new(config),
            id: process.id.clone(),
            has_log: process.firecracker.is_some(),
            metrics: None,
            requests: Arc::default(),
            measured: Latencies::default(),
            may_open: false,
            restored: None,
            before_load: None,
            starts_paused: false,
            requested: 0,
            usage: process.api_sock.as_ref().and_then(|_| Usage::open().ok()),
            record: record.clone(),
        };
        if let Some(flags) = &process.firecracker {
            api.adopt(flags)?;
        }
        if let Some(path) = &process.config_file {
            let named = || {
                let ours = format!("--config-file {}", path.display());
                logger::worded(
                    &format!("{OF_FILE}: Configuration for VMM from one single json failed"),
                    ours,
                )
            };
            let steps = config_file::read(path).with_context(named)?;
            steps.into_iter().try_for_each(|what| api.configure(what)).with_context(named)?;
        }
        Ok(api)
    }

    /// An `error` of a machine that was described before there were clients.
    pub fn explain(&self, error: Error) -> Error {
        let process = self.config().process;
        match (process.firecracker, process.config_file) {
            (Some(_), Some(_)) => {
                error.context(format!("{OF_FILE}: Could not Start MicroVM from one single json"))
            }
            _ => error,
        }
    }

    /// To be called when the machine has started. Writes the first metrics.
    pub fn started(&mut self, machine: &LiveMachine) {
        self.write_metrics(machine);
        if self.config().process.config_file.is_some() {
            let words = "Successfully started microvm that was configured from one single json";
            log_as_firecracker(Level::Info, format_args!("{words}"));
        }
    }

    /// Whether the machine can be started without a client's request.
    pub fn is_complete(&self) -> bool {
        self.setup.check_complete().is_ok()
    }

    /// Applies the clients' changes since the first start to a machine that is built again.
    pub fn configure_again(&self, machine: &mut Machine) -> Result<()> {
        let config = self.config().machine.0;
        for (index, disk) in config.disk.iter().enumerate() {
            let limiter = Limiter::new(&disk.limit, Instant::now());
            machine.change_disk(index, |block| {
                block.limiter = limiter;
                Ok(())
            })?;
        }
        for (index, card) in config.net.iter().enumerate() {
            let [rx, tx] = [&card.rx_limit, &card.tx_limit];
            let [rx, tx] = [rx, tx].map(|limit| Limiter::new(limit, Instant::now()));
            machine.change_card(index, |net| {
                (net.rx.limiter, net.tx.limiter) = (rx, tx);
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

    /// The configuration so far.
    pub fn config(&self) -> Config {
        self.setup.config()
    }

    /// Serves `call` before there is a machine. Returns the call if it requests a start and nothing is missing, or the
    /// end.
    pub fn serve_before(&mut self, call: ApiCall) -> Option<Result<ApiCall, End>> {
        let answer = match &call.request {
            ApiRequest::Load(load) => match self.load(load) {
                Ok(()) => return Some(Ok(call)),
                Err(error) => ApiResponse::Fault(format!("{error:#}")),
            },
            ApiRequest::Start => match self.setup.check_complete() {
                Ok(()) => return Some(Ok(call)),
                Err(error) => ApiResponse::Fault(format!("{error:#}")),
            },
            ApiRequest::Get(resource) => self.get_before_start(*resource).into(),
            ApiRequest::Configure(what) => self.configure((**what).clone()).into(),
            ApiRequest::Control(ControlCommand::Stop) => {
                call.answer(ApiResponse::Done);
                return Some(Err(End::Api));
            }
            ApiRequest::Control(_) => ApiResponse::Fault(NOT_BEFORE_START.into()),
        };
        call.answer(answer);
        None
    }

    /// Serves `call` for a machine that has started; returns the end if the call requests it.
    pub(super) fn serve_after(
        &mut self,
        call: ApiCall,
        machine: &mut LiveMachine,
        subject: &Subject,
    ) -> Option<End> {
        let answer = match &call.request {
            ApiRequest::Control(ControlCommand::Snapshot) => {
                self.save(machine, subject, Extent::Full, &call.files).into()
            }
            ApiRequest::Control(ControlCommand::CreateSnapshot(create)) => {
                let start = Instant::now();
                let done = self.create_snapshot(create, machine, subject);
                let took = micros(start.elapsed());
                match create.extent() {
                    Extent::Full if done.is_ok() => self.measured.save_us = took,
                    Extent::Diff if done.is_ok() => self.measured.save_diff_us = took,
                    _ => {}
                }
                done.into()
            }
            ApiRequest::Start | ApiRequest::Load(_) | ApiRequest::Configure(_) => {
                ApiResponse::Fault(NOT_AFTER_START.into())
            }
            ApiRequest::Get(resource) => self.get(*resource, machine, subject.ram).into(),
            ApiRequest::Control(ControlCommand::Stop) => {
                call.answer(ApiResponse::Done);
                return Some(End::Api);
            }
            ApiRequest::Control(command) => self.execute(command, machine).into(),
        };
        call.answer(answer);
        // The machine could not be started again.
        machine.is_lost().then(|| End::Guest(Halt::Internal("the machine cannot go on".into())))
    }

    fn execute(&mut self, command: &ControlCommand, machine: &mut LiveMachine) -> Result<()> {
        match command {
            ControlCommand::Stop | ControlCommand::Snapshot | ControlCommand::CreateSnapshot(_) => {
                Ok(())
            }
            ControlCommand::PressPowerButton => handles(machine)?.press_power_button(),
            ControlCommand::FlushMetrics => self.flush_metrics(machine),
            ControlCommand::State(state) => self.set_state(*state, machine),
            ControlCommand::Drive(drive) => self.change_drive(drive, machine),
            ControlCommand::Interface(update) => self.change_interface(update, machine),
            ControlCommand::ResizeBalloon(update) => self.resize(update.amount_mib, machine),
            ControlCommand::PollBalloon(update) => {
                self.setup.poll_balloon(update.stats_polling_interval_s)
            }
            ControlCommand::StartHinting(ends_itself) => {
                self.hinting(machine)?.start_hinting(*ends_itself)
            }
            ControlCommand::StopHinting => self.hinting(machine)?.stop_hinting(),
            ControlCommand::ResizeMemory(update) => {
                self.resize_memory(update.requested_size_mib, machine)
            }
        }
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

    /// The resources that are the same before and after the start.
    fn get_any(&self, resource: Resource, state: &str) -> Result<Value> {
        Ok(match resource {
            Resource::Instance => json!({
                "app_name": "tinyvmm",
                "id": self.id,
                "state": state,
                "vmm_version": env!("CARGO_PKG_VERSION"),
            }),
            Resource::Version => json!({ "firecracker_version": FIRECRACKER_VERSION }),
            Resource::Machine => serde_json::to_value(self.setup.machine())?,
            Resource::Balloon => serde_json::to_value(self.setup.balloon()?)?,
            Resource::All => self.setup.all()?,
            Resource::SnapshotNames => json!(snapshot::names(&self.config().machine.0)),
            Resource::BootReport => json!({ "marks": self.record.marks() }),
            Resource::BalloonStatistics
            | Resource::Hinting
            | Resource::Memory
            | Resource::Stats => {
                bail!(NOT_BEFORE_START)
            }
        })
    }

    fn get_before_start(&self, resource: Resource) -> Result<Value> {
        self.get_any(resource, "Not started")
    }

    fn get(&mut self, resource: Resource, machine: &LiveMachine, ram: &GuestRam) -> Result<Value> {
        match resource {
            Resource::Stats => self.stats(machine, ram),
            Resource::BalloonStatistics => {
                ensure!(
                    self.config().machine.0.balloon_features.statistics,
                    "statistics are off: stats_polling_interval_s of PUT /balloon turns them on"
                );
                balloon_statistics(balloon(machine)?)
            }
            Resource::Hinting => {
                let hinting = self.hinting(machine)?.hinting();
                let Hinting { host_command, guest_command, .. } = hinting;
                Ok(json!({ "host_cmd": host_command, "guest_cmd": guest_command }))
            }
            Resource::Memory => {
                let memory = self.setup.memory();
                let memory = memory.context("the machine has no room for more memory")?;
                let mut value = serde_json::to_value(memory)?;
                value["requested_size_mib"] = (self.requested / layout::MIB).into();
                value["plugged_size_mib"] = (plugged(machine) / layout::MIB).into();
                Ok(value)
            }
            resource => self.get_any(resource, state(machine)),
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

    /// The balloon, of which hints can be had.
    fn hinting<'a>(&self, machine: &'a LiveMachine) -> Result<&'a BalloonHandle> {
        let is_on = self.config().machine.0.balloon_features.hinting;
        ensure!(is_on, "hinting is off: free_page_hinting of PUT /balloon turns it on");
        balloon(machine)
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

/// Memory that the guest has plugged, in bytes.
fn plugged(machine: &LiveMachine) -> u64 {
    let memory = machine.handles().and_then(|handles| handles.memory.as_ref());
    memory.map_or(0, |memory| memory.status().plugged)
}

/// Firecracker's name for the machine's state.
fn state(machine: &LiveMachine) -> &'static str {
    if machine.is_paused() { "Paused" } else { "Running" }
}

/// The guest's last statistics; requests new ones for the next time.
fn balloon_statistics(balloon: &BalloonHandle) -> Result<Value> {
    balloon.refresh_statistics();
    let (target, actual) = (balloon.target(), balloon.actual());
    let mut answer = Map::new();
    let mut add = |name: &str, value: u64| answer.insert(name.to_owned(), value.into());
    add("target_pages", target / 4096);
    add("actual_pages", actual / 4096);
    add("target_mib", target / layout::MIB);
    add("actual_mib", actual / layout::MIB);
    for (tag, value) in balloon.statistics().iter().flat_map(|statistics| statistics.iter()) {
        add(stats::BALLOON[tag], value);
    }
    Ok(answer.into())
}

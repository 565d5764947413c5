//! The thread that owns the machine: builds it, waits for its end, starts it again.

use std::cell::RefCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use tinyvmm::arch::capabilities;
use tinyvmm::config::{MachineConfig, VsockConfig};
use tinyvmm::devices::console::Console;
use tinyvmm::event::{Event, Halt};
use tinyvmm::machine::{Files, LiveMachine, Machine, Owner, Start};
use tinyvmm::memory::{self, GuestRam};
use tinyvmm::timeline::{Mark, Observer, Timeline};

use crate::api::{Api, ApiCall};
use crate::config::{Config, ProcessConfig};
use crate::host::Misfit;
use crate::inbox::{End, Inbox, Message};
use crate::jail::Jail;
use crate::last_words::LastWords;
use crate::measure::Record;
use crate::names::{self, Named};
use crate::net::{self, Network};
use crate::report::ReportFile;
use crate::snapshot::{Restored, Subject};
use crate::vsock::Vsock;
use crate::{console, files, host, logger, process};

/// A second signal this soon repeats the first: timeout(1) signals a child and then its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);
/// Time for a guest to power off once its power button was pressed.
const GRACE: Duration = Duration::from_secs(5);

/// The end of a machine, and the property of this host that explains the end, if there is one.
pub struct RunOutcome {
    /// The machine's end.
    pub end: End,
    /// Why such a kernel cannot boot on this host.
    pub reason: Option<String>,
}

/// Runs the machine until it ends for good, and returns its end. An error means that the machine did not start. `start`
/// is the start of the process.
///
/// Of a snapshot, `config` is adopted already.
pub fn run(config: &Config, restored: Option<Restored>, start: Instant) -> Result<RunOutcome> {
    let process = &config.process;
    let mut record = Record::since(start, process.trace_exits);
    record.hook = process.detach.then_some(names::reached);
    let record = Arc::new(record);
    record.reached(Mark::Configured);
    process::share_heap();
    let mut jail = Jail::begin(process)?;
    // What is outside the jail is connected before its namespaces are entered.
    let early = process.jail.as_ref().map(|_| Outside::open(config)).transpose()?;
    jail.isolate()?;
    if process.boot_report.is_some() {
        record.count_instructions();
    }
    let (kvm, inbox) = (host::open_kvm()?, Inbox::new()?);
    let mut named = Named::open(config, &jail)?;
    let copy = named.as_ref().map(Named::copy).transpose()?;
    let early = RefCell::new(early);
    let is_measured = is_measured(process);
    let folder = std::env::current_dir().unwrap_or_default();
    let goes_on = restored.is_some();
    let restored = RefCell::new(restored);
    let host = Host { jail, kvm, inbox, record, copy, is_measured, early, folder, restored };
    let mut api = Api::open(config, &host.record, host.inbox.waker())?;
    let report = process.boot_report.as_deref();
    let mut report = report.map(|path| ReportFile::open(path, &config.machine.0)).transpose()?;
    let (mut parts, machine, call) = match host.wait_for_start(config, &mut api)? {
        Ok(started) => started,
        Err(end) => return Ok(RunOutcome { end, reason: None }),
    };
    if let Some(named) = &mut named {
        named.serve(&parts.machine)?;
    }
    host.close_jail(&mut parts, &mut api)?;
    let machine = match &api {
        Some(api) if api.starts_paused() => LiveMachine::Paused(machine),
        _ => LiveMachine::Running(machine.start()?),
    };
    process::trim_code();
    if goes_on && process.detach {
        names::reached(Mark::InitMark); // long ago
    }
    if let Some(call) = call {
        call.answer(Ok(()));
    }
    let mut used = None;
    let end = host.run_until_it_ends(&parts, machine, &mut api, || {
        if let Some(report) = &mut report {
            used.get_or_insert_with(|| report.memory(&parts.ram));
        }
    });
    let end = end.unwrap_or_else(|error| End::Guest(Halt::Internal(format!("{error:#}"))));
    if let Some(report) = report
        && let Err(error) = report.write(&host.record, &end, used.unwrap_or_default())
    {
        log::error!("{error:#}");
    }
    if let Some(trace) = host.record.trace() {
        logger::print_message(trace.trim_end());
    }
    if let Some(named) = &mut named {
        named.ended(&end);
    }
    let reason = parts.misfit.and_then(|misfit| misfit.explain(&end));
    Ok(RunOutcome { end, reason })
}

/// Whether the boot's marks are used.
fn is_measured(process: &ProcessConfig) -> bool {
    process.boot_report.is_some() || process.trace_exits || process.api_sock.is_some()
}

/// What machines are built with.
struct Host<'a> {
    jail: Jail<'a>,
    kvm: Kvm,
    inbox: Inbox,
    record: Arc<Record>,
    /// Gets a copy of the console of a machine with a name.
    copy: Option<File>,
    is_measured: bool,
    /// What was connected before the jail's namespaces were entered.
    early: RefCell<Option<Outside>>,
    /// Where the process was started.
    folder: PathBuf,
    /// What the machine is made of, until it is.
    restored: RefCell<Option<Restored>>,
}

/// What a machine is connected to by other processes.
struct Outside {
    network: Network,
    vsock: Option<Vsock>,
}

impl Outside {
    fn open(config: &Config) -> Result<Self> {
        let (machine, jail) = (&config.machine.0, config.process.jail.as_ref());
        let network = Network::open(&machine.net)?;
        let network = if jail.is_some() { network.ready()? } else { network };
        let path =
            |vsock: &VsockConfig| vsock.path.clone().or_else(|| names::vsock(&config.process));
        let path = machine.vsock.as_ref().and_then(path);
        let vsock = path.map(|path| Vsock::open(&path, jail)).transpose()?;
        Ok(Self { network, vsock })
    }
}

/// What a machine is built of, also after a reset.
struct Parts {
    machine: MachineConfig,
    files: Files,
    ram: GuestRam,
    /// When `--timeout` is over.
    deadline: Option<Instant>,
    ends_at_reset: bool,
    misfit: Option<Misfit>,
    /// Its socket is there for as long as this.
    _vsock: Option<Vsock>,
}

/// A machine that can start, and the API's call that requested the start.
type Assembled = (Parts, Machine, Option<ApiCall>);

impl Host<'_> {
    /// Assembles the machine that `config` describes, or waits until clients of the API have described one and request
    /// its start; or for the end.
    fn wait_for_start(
        &self,
        config: &Config,
        api: &mut Option<Api>,
    ) -> Result<Result<Assembled, End>> {
        let plain = |(parts, machine)| Ok((parts, machine, None));
        let Some(api) = api else { return self.assemble(config).map(plain) };
        if api.is_complete() {
            let assembled = self.assemble(&api.config())?;
            api.serve(&self.jail)?;
            return Ok(plain(assembled));
        }
        api.serve(&self.jail)?;
        loop {
            let call = match self.inbox.wait(None) {
                Some(Message::Door) => api.serve_before_start(),
                Some(Message::StopRequest) => return Ok(Err(End::Signal)),
                Some(Message::Quit) => return Ok(Err(End::Quit)),
                _ => None,
            };
            let call = match call {
                Some(Ok(call)) => call,
                Some(Err(end)) => return Ok(Err(end)),
                None => continue,
            };
            if let Some(restored) = api.take_restored() {
                self.restored.replace(Some(restored));
            }
            match self.assemble(&api.config()) {
                Ok((parts, machine)) => return Ok(Ok((parts, machine, Some(call)))),
                Err(error) => {
                    self.record.forget_exits();
                    self.restored.take();
                    api.forget_loaded();
                    call.answer(Err::<(), _>(error));
                }
            }
        }
    }

    /// Opens the files that `config` names, and builds a machine that can start.
    fn assemble(&self, config: &Config) -> Result<(Parts, Machine)> {
        config.validate()?;
        let (mut machine, process) = (config.machine_to_build(), &config.process);
        capabilities::check(&self.kvm, &machine)?;
        net::settle(&mut machine, process.name.as_deref())?;
        let early = self.early.take();
        let Outside { mut network, vsock } = early.map_or_else(|| Outside::open(config), Ok)?;
        let wires = std::mem::take(&mut network.wires);
        let restored = self.restored.take();
        let (mut files, memory) = match restored {
            None => (files::open(&machine, process, wires)?, None),
            Some(restored) => {
                let disks = restored.open_disks(&machine)?;
                let (start, memory) = restored.start()?;
                (Files { start, disks, wires, vsock: None }, Some(memory))
            }
        };
        files.vsock = vsock.as_ref().map(|vsock| vsock.host.clone());
        let misfit = match &files.start {
            Start::Boot { kernel, .. } => Misfit::find(kernel),
            Start::Saved(..) => None,
        };
        let mut console = console::new(config)?;
        if let Some(copy) = &self.copy {
            console.copy_to(copy.try_clone()?);
        }
        if process.jail.is_some() {
            // The console's file is opened before privileges are dropped, as all files are.
            console::connect(&mut console, config, self.inbox.waker())?;
        }
        self.jail.drop_privileges()?;
        if machine.mem.room().is_some() && process.api_sock.is_none() {
            log::warn!("--mem {}: nobody can ask for more without --api-sock, add it", machine.mem);
        }
        let ram = host::allocate_ram(&machine)?;
        if let Some(file) = memory {
            memory::saved::restore(&ram, &file, machine.hugepages).context("--restore: memory")?;
        }
        let deadline = process.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let ends_at_reset = process.ends_at_reset();
        let parts = Parts { machine, files, ram, deadline, ends_at_reset, misfit, _vsock: vsock };
        let mut machine = self.build(&parts, console)?;
        network.ready()?;
        if process.jail.is_none() {
            // The last step before the start, when nothing else can fail.
            console::connect(machine.console(), config, self.inbox.waker())?;
        }
        Ok((parts, machine))
    }

    fn build(&self, parts: &Parts, console: Console) -> Result<Machine> {
        let timeline = match self.is_measured {
            true => Timeline::new(self.record.clone()),
            false => Timeline::default(),
        };
        let owner = Owner { events: self.inbox.sender(), timeline };
        let Parts { machine, files, ram, .. } = parts;
        let machine = Machine::build(&self.kvm, machine, files, ram, console, &owner);
        process::trim_heap();
        machine
    }

    fn close_jail(&self, parts: &mut Parts, api: &mut Option<Api>) -> Result<()> {
        let places = api.as_ref().map_or(Ok(Vec::new()), Api::places)?;
        let folder = api.as_ref().and_then(Api::folder);
        let opens = self.jail.close(folder, &places)?;
        if let Some(api) = api {
            api.allow_opening(opens);
            if opens && parts.ends_at_reset {
                // The machine is not built again, so these need not stay locked when they are exchanged.
                parts.files.disks.clear();
            }
        }
        Ok(())
    }

    /// Runs `machine`, again after each reset, and calls `stopped` whenever it has stopped.
    fn run_until_it_ends(
        &self,
        parts: &Parts,
        mut machine: LiveMachine,
        api: &mut Option<Api>,
        mut stopped: impl FnMut(),
    ) -> Result<End> {
        loop {
            let end = self.wait_for_end(parts, &mut machine, api)?;
            let ended = machine.end()?;
            stopped();
            if let Some(api) = api {
                api.write_last_metrics(&ended);
            }
            if end != End::Guest(Halt::Reset) || parts.ends_at_reset {
                return Ok(end);
            }
            if parts.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(End::Timeout);
            }
            log::info!("the guest rebooted: starting it again");
            memory::discard(&parts.ram, parts.machine.hugepages)?;
            self.inbox.forget_guest();
            let mut next = self.build(parts, ended.into_console())?;
            if let Some(api) = api {
                api.configure_again(&mut next)?;
            }
            machine = LiveMachine::Running(next.start()?);
        }
    }

    /// What a snapshot of a machine of `parts` takes.
    fn subject<'b>(&'b self, parts: &'b Parts) -> Subject<'b> {
        let Parts { machine: config, ram, .. } = parts;
        Subject { kvm: &self.kvm, config, ram, folder: &self.folder, cards: Vec::new() }
    }

    /// Waits for the machine's end, or ends the machine; serves the API meanwhile.
    fn wait_for_end(
        &self,
        parts: &Parts,
        machine: &mut LiveMachine,
        api: &mut Option<Api>,
    ) -> Result<End> {
        let mut grace: Option<Instant> = None;
        let mut last_words: Option<LastWords> = None;
        loop {
            if let Some(words) = last_words.take_if(|words| words.are_over(machine)) {
                return Ok(words.end());
            }
            let look = last_words.as_ref().map(|words| words.due);
            let due = api.as_mut().and_then(Api::metrics_due);
            let until = [parts.deadline, grace, due, look].into_iter().flatten().min();
            match self.inbox.wait(until) {
                Some(Message::Door) => {
                    let subject = self.subject(parts);
                    let end = api.as_mut().and_then(|api| api.serve_calls(machine, &subject));
                    if let Some(end) = end {
                        return Ok(end);
                    }
                }
                Some(Message::Quit) => return Ok(End::Quit),
                Some(Message::Machine(Event::InitRuns)) => {
                    process::trim_code(); // a running guest needs little of the code that a boot needs
                }
                Some(Message::Machine(Event::Halt(halt))) => {
                    if let Some(words) = last_words {
                        return Ok(words.end());
                    }
                    last_words = LastWords::after(&halt, machine);
                    if last_words.is_some() {
                        continue;
                    }
                    return Ok(match machine.explain(halt) {
                        // A guest that reboots instead of powering off is not started again.
                        Halt::Reset if grace.is_some() => End::Signal,
                        halt => End::Guest(halt),
                    });
                }
                Some(Message::StopRequest)
                    if grace.is_some_and(|end| end < Instant::now() + GRACE - ONE_REQUEST) =>
                {
                    return Ok(End::Signal);
                }
                Some(Message::StopRequest) if grace.is_some() => {}
                // A paused guest cannot react.
                Some(Message::StopRequest) if machine.is_paused() => return Ok(End::Signal),
                Some(Message::StopRequest) => {
                    log::info!("pressing the guest's power button");
                    if let Some(handles) = machine.handles() {
                        handles.press_power_button()?;
                    }
                    grace = Some(Instant::now() + GRACE);
                }
                None if api.as_mut().is_some_and(|api| api.write_due_metrics(machine)) => {}
                None if grace.is_some_and(|grace| Instant::now() >= grace) => {
                    return Ok(End::Signal);
                }
                None if parts.deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Ok(last_words.map_or(End::Timeout, LastWords::end));
                }
                None => {}
            }
        }
    }
}

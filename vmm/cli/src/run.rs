//! The thread that owns the machine: builds it, waits for its end, starts it again.

use std::cell::RefCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kvm_ioctls::Kvm;
use tinyvmm::arch::capabilities;
use tinyvmm::config::MachineConfig;
use tinyvmm::devices::console::Console;
use tinyvmm::event::{Event, Halt};
use tinyvmm::machine::{Files, LiveMachine, Machine, Owner, Start};
use tinyvmm::memory::{self, GuestRam};
use tinyvmm::timeline::{Mark, Observer, Timeline};

use crate::api::{Api, ApiCall};
use crate::config::Config;
use crate::exec::GuestCommand;
use crate::host::Misfit;
use crate::identity::Renewal;
use crate::inbox::{self, End, GRACE, Inbox, Message};
use crate::jail::Jail;
use crate::last_words::LastWords;
use crate::measure::Record;
use crate::names::{self, Named};
use crate::outside::Outside;
use crate::report::ReportFile;
use crate::share::Shares;
use crate::snapshot::{FilledMemory, Restored, SavedMemory, Subject};
use crate::vsock::Vsock;
use crate::{console, files, host, logger, net, process};

/// A second signal this soon repeats the first: timeout(1) signals a child and then its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// The end of a machine, and the property of this host that explains the end, if there is one.
pub struct RunOutcome {
    /// The machine's end.
    pub end: End,
    /// Why such a kernel cannot boot on this host.
    pub reason: Option<String>,
    /// The exit code of a command that was not waited for.
    pub given_up: Option<u8>,
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
    let mut renewal = Renewal::prepare(config, restored.as_ref())?;
    // What is outside the jail is connected before its namespaces are entered.
    let early = process.jail.as_ref().map(|_| Outside::open(config, restored.as_ref()));
    let early = early.transpose()?;
    jail.isolate()?;
    if process.boot_report.is_some() {
        record.count_instructions();
    }
    let (kvm, inbox) = (host::open_kvm()?, Inbox::new()?);
    let mut named = Named::open(config, &jail)?;
    let copy = named.as_ref().map(Named::copy).transpose()?;
    // Whether the boot's marks are used.
    let is_measured =
        process.boot_report.is_some() || process.trace_exits || process.api_sock.is_some();
    let folder = std::env::current_dir().unwrap_or_default();
    let goes_on = restored.is_some();
    let (early, restored) = (RefCell::new(early), RefCell::new(restored));
    let host = Host { jail, kvm, inbox, record, copy, is_measured, early, folder, restored };
    let mut api = Api::open(config, &host.record, host.inbox.waker())?;
    let report = process.boot_report.as_deref();
    let mut report = report.map(|path| ReportFile::open(path, &config.machine.0)).transpose()?;
    let (mut parts, machine, call) = match host.wait_for_start(config, &mut api)? {
        Ok(started) => started,
        Err(end) => return Ok(RunOutcome { end, reason: None, given_up: None }),
    };
    if let Some(named) = &mut named {
        named.serve(&parts.machine)?;
    }
    host.close_jail(&mut parts, &mut api)?;
    parts.command.as_mut().map_or(Ok(()), GuestCommand::start)?;
    let machine = match &api {
        Some(api) if api.starts_paused() => LiveMachine::Paused(machine),
        _ => LiveMachine::Running(machine.start()?),
    };
    api.iter_mut().for_each(|api| api.started(&machine));
    process::trim_code();
    if renewal.as_mut().map(Renewal::begin).is_none() && goes_on && process.detach {
        names::reached(Mark::InitMark); // long ago
    }
    call.into_iter().for_each(|call| call.answer(Ok(())));
    let mut used = None;
    let end = host.run_until_it_ends(&parts, machine, &mut api, || {
        if let Some(report) = &mut report {
            used.get_or_insert_with(|| report.memory(&parts.ram));
        }
    });
    let end = end.unwrap_or_else(|error| End::Guest(Halt::Internal(format!("{error:#}"))));
    let given_up = parts.command.take().and_then(GuestCommand::finish);
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
    Ok(RunOutcome { end, reason, given_up })
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

/// What a machine is built of, also after a reset.
struct Parts {
    machine: MachineConfig,
    files: Files,
    ram: GuestRam,
    /// What its memory was made of.
    memory: Option<FilledMemory>,
    /// When `--timeout` is over.
    deadline: Option<Instant>,
    ends_at_reset: bool,
    misfit: Option<Misfit>,
    command: Option<GuestCommand>,
    /// Its socket is there for as long as this, and what serves its shares.
    _doors: (Option<Vsock>, Shares),
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
            let assembled = self.assemble(&api.config()).map_err(|error| api.explain(error))?;
            api.serve(&self.jail)?;
            return Ok(plain(assembled));
        }
        api.serve(&self.jail)?;
        loop {
            let call = match self.inbox.wait(None) {
                Some(Message::Door) => api.serve_before_start(),
                Some(Message::StopRequest) => return Ok(Err(End::Signal)),
                Some(Message::Quit) => return Ok(Err(End::Quit)),
                Some(Message::Killed(signal)) => return Ok(Err(End::Killed(signal))),
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
        let restored = self.restored.take();
        let mut outside = early.map_or_else(|| Outside::open(config, restored.as_ref()), Ok)?;
        let host = outside.host()?;
        let Outside { mut network, mut shares, vsock, mut command } = outside;
        let wires = std::mem::take(&mut network.wires);
        let (mut files, memory) = match restored {
            None => (files::open(&machine, process)?, None),
            Some(restored) => {
                let disks = restored.open_disks(&machine)?;
                let (start, memory) = restored.start()?;
                (Files { disks, ..Files::new(start) }, Some(memory))
            }
        };
        (files.wires, files.backends) = (wires, std::mem::take(&mut shares.backends));
        files.vsock = host;
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
            console::connect(&mut console, config, self.inbox.waker(), command.as_mut())?;
        }
        self.jail.drop_privileges()?;
        if machine.mem.room().is_some() && process.api_sock.is_none() {
            log::warn!("--mem {}: nobody can ask for more without --api-sock, add it", machine.mem);
        }
        let ram = host::allocate_ram(&machine)?;
        let deadline = process.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let fill = |memory: SavedMemory| memory.fill(&ram, machine.hugepages, deadline);
        let memory = memory.map(fill).transpose()?;
        let ends_at_reset = process.ends_at_reset();
        let _doors = (vsock, shares);
        let mut parts =
            Parts { machine, files, ram, memory, deadline, ends_at_reset, misfit, command, _doors };
        let mut machine = self.build(&parts, console)?;
        network.ready()?;
        if process.jail.is_none() {
            // The last step before the start, when nothing else can fail.
            let (console, command) = (machine.console(), parts.command.as_mut());
            console::connect(console, config, self.inbox.waker(), command)?;
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
            inbox::expect_end_within(Duration::ZERO);
            let ended = machine.end()?;
            stopped();
            if let Some(api) = api {
                api.write_last_metrics(&ended, &end);
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
        let Parts { machine: config, ram, memory, .. } = parts;
        let base = memory.as_ref().map(|memory| &memory.base);
        Subject { kvm: &self.kvm, config, ram, folder: &self.folder, cards: Vec::new(), base }
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
                Some(Message::Killed(signal)) => return Ok(End::Killed(signal)),
                // A running guest needs little of the code that a boot needs.
                Some(Message::Machine(Event::InitRuns)) => process::trim_code(),
                Some(Message::Machine(Event::ReadsConsole)) => {
                    parts.command.iter().for_each(GuestCommand::use_console);
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

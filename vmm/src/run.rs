//! The thread that owns the machine: builds it, waits for its end, starts it again.

use std::time::{Duration, Instant};

use anyhow::Result;
use kvm_ioctls::Kvm;

use crate::api::control::Control;
use crate::api::{Answer, Call, Door};
use crate::cli::EXIT_JAIL;
use crate::command::EXIT_NO_STATUS;
use crate::config::MachineConfig;
use crate::devices::console::Console;
use crate::event::{Event, Events, Halt};
use crate::files::Files;
use crate::firecracker::EXIT_BAD_SYSCALL;
use crate::jail::Jail;
use crate::machine::Machine;
use crate::machine::started::Started;
use crate::memory::{self, GuestRam};
use crate::report::Target;
use crate::timeline::{Mark, Timeline};
use crate::trace::ExitTrace;
use crate::{host, logger, process};

/// A second signal this soon is the same request: timeout(1) signals a child and then its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);
/// How long a guest has to power off once its power button was pressed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the machine until it ends for good, and returns why. An error means that it did not start.
/// `start` is when the process was started.
pub fn run(config: &MachineConfig, start: Instant) -> Result<Halt> {
    let timed = config.boot_report.is_some() || config.trace_exits || config.api_sock.is_some();
    let timeline = if timed { Timeline::since(start) } else { Timeline::default() };
    timeline.reach(Mark::Configured);
    process::share_heap();
    let jail = Jail::begin(!config.no_jail, config.jail.as_ref())?;
    if config.boot_report.is_some() {
        timeline.count_instructions();
    }
    let exit_code = match config.command.is_empty() {
        _ if config.firecracker.is_some() => EXIT_BAD_SYSCALL,
        true => EXIT_JAIL,
        false => EXIT_NO_STATUS,
    };
    let (kvm, events) = (host::open_kvm()?, Events::new()?);
    let host = Host { jail, kvm, events, timeline };
    let mut control = Control::new(config, &host.timeline)?;
    let mut door = Door::open_if_wanted(config, host.events.sender())?;
    let report = config.boot_report.as_deref();
    let mut report = report.map(|path| Target::open(path, config)).transpose()?;
    let (mut parts, machine, call) = match &mut door {
        Some(door) if !control.is_complete() => {
            door.serve(&host.jail, exit_code)?;
            match host.wait_for_start(&mut control) {
                Ok((parts, machine, call)) => (parts, machine, Some(call)),
                Err(halt) => return Ok(halt),
            }
        }
        _ => {
            let (parts, machine) = host.assemble(control.config())?;
            (parts, machine, None)
        }
    };
    if let Some(door) = &mut door {
        door.serve(&host.jail, exit_code)?;
    }
    let opens = host.jail.close(exit_code, door.as_ref().map(Door::folder), &control.places()?)?;
    control.may_open(opens);
    if opens && parts.config.ends_at_reset() {
        // Nobody builds a machine of them again: one that is exchanged is not to stay locked.
        parts.files.disks.clear();
    }
    let machine = Started::Running(machine.start()?);
    process::trim_code();
    if let Some(call) = call {
        call.answer(Answer::Done);
    }
    let (mut trace, mut used) = (ExitTrace::default(), None);
    let halt = host.run_until_it_ends(&parts, machine, &mut control, |machine| {
        machine.traces().for_each(|of_cpu| trace.merge(of_cpu));
        if let Some(report) = &mut report {
            used.get_or_insert_with(|| report.memory(&parts.ram));
        }
    });
    let halt = halt.unwrap_or_else(|error| Halt::Internal(format!("{error:#}")));
    if let Some(report) = report
        && let Err(error) = report.write(&host.timeline, &halt, used.unwrap_or_default())
    {
        log::error!("{error:#}");
    }
    if config.trace_exits {
        logger::tell(trace.to_string().trim_end());
    }
    Ok(halt)
}

/// What machines are made with.
struct Host<'a> {
    jail: Jail<'a>,
    kvm: Kvm,
    events: Events,
    timeline: Timeline,
}

/// What a machine is made of, also when it is built again.
struct Parts {
    config: MachineConfig,
    files: Files,
    ram: GuestRam,
    /// When `--timeout` is over.
    deadline: Option<Instant>,
}

impl Host<'_> {
    /// Waits until clients have described a machine that can be assembled, and want it started; or for the end.
    fn wait_for_start(&self, control: &mut Control) -> Result<(Parts, Machine, Call), Halt> {
        loop {
            let call = match self.events.wait(None) {
                Some(Event::Api(call)) => control.serve_before(call).transpose()?,
                Some(Event::StopRequest) => return Err(Halt::Stopped),
                Some(Event::Halt(halt)) => return Err(halt),
                None => None,
            };
            let Some(call) = call else { continue };
            match self.assemble(control.config()) {
                Ok((parts, machine)) => return Ok((parts, machine, call)),
                Err(error) => {
                    self.timeline.forget_exits();
                    call.answer(Answer::Fault(format!("{error:#}")));
                }
            }
        }
    }

    /// Opens what `config` names, and makes a machine of it that can start.
    fn assemble(&self, config: MachineConfig) -> Result<(Parts, Machine)> {
        config.validate()?;
        host::check(&self.kvm, &config)?;
        let files = Files::open(&config)?;
        let mut console = Console::new(config.console.clone(), !config.command.is_empty())?;
        if config.jail.is_some() {
            // Its file is opened as the others are: by the user who started us.
            console.connect(&config)?;
        }
        self.jail.drop_privileges()?;
        let mut ram = memory::allocate(config.mem.bytes(), config.hugepages)?;
        if let Some(room) = config.mem.room() {
            ram = memory::with_room(&ram, room, config.mem.block())?;
            if config.api_sock.is_none() {
                log::warn!(
                    "--mem {}: nobody can ask for more without --api-sock, add it",
                    config.mem
                );
            }
        }
        let deadline = config.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let parts = Parts { config, files, ram, deadline };
        let mut machine = self.build(&parts, console)?;
        machine.connect(&parts.config)?;
        Ok((parts, machine))
    }

    fn build(&self, parts: &Parts, console: Console) -> Result<Machine> {
        let Parts { config, files, ram, .. } = parts;
        let (events, timeline) = (self.events.sender(), self.timeline.clone());
        Machine::build(config, files, &self.kvm, ram, console, events, timeline)
    }

    /// Has `machine` run, again after each reset, and shows it to `stopped` whenever it has.
    fn run_until_it_ends(
        &self,
        parts: &Parts,
        mut machine: Started,
        control: &mut Control,
        mut stopped: impl FnMut(&Machine),
    ) -> Result<Halt> {
        loop {
            let halt = self.wait_for_end(parts, &mut machine, control)?;
            let ended = machine.end()?;
            stopped(&ended);
            control.write_last_metrics(&ended);
            if halt != Halt::Reset || parts.config.ends_at_reset() {
                return Ok(halt);
            }
            if parts.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Halt::Timeout);
            }
            log::info!("the guest rebooted: starting it again");
            memory::discard(&parts.ram, parts.config.hugepages)?;
            self.events.forget_halts();
            let mut next = self.build(parts, ended.into_console())?;
            control.tell_again(&mut next)?;
            machine = Started::Running(next.start()?);
        }
    }

    /// Waits for the machine's end, or brings it about; does what clients of the API want meanwhile.
    fn wait_for_end(
        &self,
        parts: &Parts,
        machine: &mut Started,
        control: &mut Control,
    ) -> Result<Halt> {
        let mut grace: Option<Instant> = None;
        loop {
            let due = control.metrics_due();
            let until = [parts.deadline, grace, due].into_iter().flatten().min();
            match self.events.wait(until) {
                Some(Event::Api(call)) => {
                    if let Some(halt) = control.serve(call, machine, &parts.ram) {
                        return Ok(halt);
                    }
                }
                Some(Event::Halt(halt)) => {
                    return Ok(match machine.explain(halt) {
                        // A guest that reboots when it is asked to power off is not started again.
                        Halt::Reset if grace.is_some() => Halt::Stopped,
                        halt => halt,
                    });
                }
                Some(Event::StopRequest)
                    if grace.is_some_and(|end| end < Instant::now() + GRACE - ONE_REQUEST) =>
                {
                    return Ok(Halt::Stopped);
                }
                Some(Event::StopRequest) if grace.is_some() => {}
                // It could not react.
                Some(Event::StopRequest) if machine.is_paused() => return Ok(Halt::Stopped),
                Some(Event::StopRequest) => {
                    log::info!("pressing the guest's power button");
                    machine.press_power_button()?;
                    grace = Some(Instant::now() + GRACE);
                }
                None if control.write_due_metrics(machine) => {}
                None if grace.is_some_and(|grace| Instant::now() >= grace) => {
                    return Ok(Halt::Stopped);
                }
                None => return Ok(Halt::Timeout),
            }
        }
    }
}

//! The thread that owns the machine: builds it, waits for its end, starts it again.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::EXIT_JAIL;
use crate::command::EXIT_NO_STATUS;
use crate::config::MachineConfig;
use crate::devices::console::Console;
use crate::event::{Event, Events, Halt};
use crate::files::Files;
use crate::jail::Jail;
use crate::machine::{Machine, RunningMachine};
use crate::report::Target;
use crate::timeline::{Mark, Timeline};
use crate::trace::ExitTrace;
use crate::{host, logger, memory};

/// A second signal this soon is the same request: timeout(1) signals a child and then its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);
/// How long a guest has to power off once its power button was pressed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the machine until it ends for good, and returns why. An error means that it did not start.
/// `start` is when the process was started.
pub fn run(config: &MachineConfig, start: Instant) -> Result<Halt> {
    let timeline = match config.boot_report.is_some() || config.trace_exits {
        true => Timeline::since(start),
        false => Timeline::default(),
    };
    timeline.reach(Mark::Configured);
    memory::share_heap();
    let jail = Jail::begin(!config.no_jail, config.jail.as_ref())?;
    let kvm = host::open_kvm()?;
    host::check(&kvm, config)?;
    let mut report = config.boot_report.as_deref().map(Target::open).transpose()?;
    let files = Files::open(config)?;
    let events = Events::new()?;
    let mut console = Console::new(config.console.clone(), !config.command.is_empty())?;
    if config.jail.is_some() {
        // Its file is opened as the others are: by the user who started us.
        console.connect()?;
    }
    jail.drop_privileges()?;
    let ram = memory::allocate(config.mem.bytes(), config.hugepages)?;
    let deadline = config.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let build = |console| {
        Machine::build(config, &files, &kvm, &ram, console, events.sender(), timeline.clone())
    };
    let mut machine = build(console)?;
    machine.connect()?;
    jail.close(if config.command.is_empty() { EXIT_JAIL } else { EXIT_NO_STATUS })?;
    let mut running = machine.start()?;
    memory::trim_code();
    let (mut trace, mut used) = (ExitTrace::default(), None);
    let until_it_ends = || loop {
        let halt = wait_for_end(&events, &running, deadline)?;
        let machine = running.stop()?;
        machine.traces().for_each(|of_cpu| trace.merge(of_cpu));
        if let Some(report) = &mut report {
            used.get_or_insert_with(|| report.memory(&ram));
        }
        if halt != Halt::Reset || config.no_reboot {
            return Ok(halt);
        }
        log::info!("the guest rebooted: starting it again");
        memory::discard(&ram, config.hugepages)?;
        events.forget_halts();
        running = build(machine.into_console())?.start()?;
    };
    let halt: Result<Halt> = until_it_ends();
    let halt = halt.unwrap_or_else(|error| Halt::Internal(format!("{error:#}")));
    if let Some(report) = report
        && let Err(error) = report.write(&timeline, &halt, used.unwrap_or_default())
    {
        log::error!("{error:#}");
    }
    if config.trace_exits {
        logger::tell(trace.to_string().trim_end());
    }
    Ok(halt)
}

/// Waits for the machine's end, or brings it about.
fn wait_for_end(
    events: &Events,
    running: &RunningMachine,
    deadline: Option<Instant>,
) -> Result<Halt> {
    let mut grace: Option<Instant> = None;
    loop {
        let until = [deadline, grace].into_iter().flatten().min();
        match events.wait(until) {
            Some(Event::Halt(halt)) => {
                return Ok(match running.explain(halt) {
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
            Some(Event::StopRequest) => {
                log::info!("pressing the guest's power button");
                running.press_power_button()?;
                grace = Some(Instant::now() + GRACE);
            }
            None if grace.is_some_and(|grace| Instant::now() >= grace) => return Ok(Halt::Stopped),
            None => return Ok(Halt::Timeout),
        }
    }
}

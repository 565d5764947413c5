//! Two ports through which a guest reports: that its init runs, and an exit status.
//!
//! A byte written to the first of [`crate::layout::REPORT_PORTS`] reports that init runs (the boot report's
//! `init-mark`), and if it is [`READS_CONSOLE`], that init's command reads the console. A byte written to the second ends
//! the machine with it as exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::event::{Event, EventSender, Halt};
use crate::timeline::{Mark, Timeline};

/// The report that the command of `tinyvmm ... -- COMMAND` has the console as its standard streams.
pub const READS_CONSOLE: u8 = 2;

/// What a guest has reported. Clones share it.
#[derive(Clone, Default)]
pub struct Reported(Arc<Flags>);

#[derive(Default)]
struct Flags {
    init_runs: AtomicBool,
    reads_console: AtomicBool,
    has_status: AtomicBool,
}

impl Reported {
    /// Whether init runs.
    pub fn init_runs(&self) -> bool {
        self.0.init_runs.load(Ordering::Relaxed)
    }

    /// Sets whether it does.
    pub fn set_init_runs(&self, runs: bool) {
        self.0.init_runs.store(runs, Ordering::Relaxed);
    }

    /// Whether init's command reads the console.
    pub fn reads_console(&self) -> bool {
        self.0.reads_console.load(Ordering::Relaxed)
    }

    /// Whether an exit status was reported.
    pub fn has_status(&self) -> bool {
        self.0.has_status.load(Ordering::Relaxed)
    }
}

/// The two ports.
pub struct GuestReport {
    /// What was reported.
    pub reported: Reported,
    /// Gets the time of that report.
    pub timeline: Timeline,
    /// Gets the reports.
    pub events: EventSender,
}

impl BusDevice for GuestReport {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [what]) => {
                let Flags { init_runs, reads_console, .. } = &*self.reported.0;
                if !init_runs.swap(true, Ordering::Relaxed) {
                    self.events.send(Event::InitRuns);
                }
                if *what == READS_CONSOLE && !reads_console.swap(true, Ordering::Relaxed) {
                    self.events.send(Event::ReadsConsole);
                }
                self.timeline.reach(Mark::InitMark);
            }
            (1, [status]) => {
                self.reported.0.has_status.store(true, Ordering::Relaxed);
                self.events.send(Event::Halt(Halt::Exited(*status)));
            }
            _ => {}
        }
    }
}

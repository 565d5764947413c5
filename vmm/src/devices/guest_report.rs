//! Two ports through which a guest reports: that its init runs, and an exit status.
//!
//! A byte written to the first of [`crate::layout::REPORT_PORTS`] reports that init runs (the boot report's
//! `init-mark`). A byte written to the second ends the machine with it as exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::event::{Event, EventSender, Halt};
use crate::timeline::{Mark, Timeline};

/// Whether init has reported that it runs. Clones share it.
#[derive(Clone, Default)]
pub struct InitRuns(Arc<AtomicBool>);

impl InitRuns {
    /// Whether init has reported.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets whether it has.
    pub fn set(&self, runs: bool) {
        self.0.store(runs, Ordering::Relaxed);
    }
}

/// The two ports.
pub struct GuestReport {
    /// Set by the first report of init.
    pub init_runs: InitRuns,
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
            (0, [_]) => {
                if !self.init_runs.0.swap(true, Ordering::Relaxed) {
                    self.events.send(Event::InitRuns);
                }
                self.timeline.reach(Mark::InitMark);
            }
            (1, [status]) => self.events.send(Event::Halt(Halt::Exited(*status))),
            _ => {}
        }
    }
}

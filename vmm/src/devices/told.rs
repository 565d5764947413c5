//! Two ports through which a guest tells of itself: init's mark, and an exit status.
//!
//! The first of [`crate::layout::TOLD_PORTS`] is the mark: a byte written there says that init runs (the
//! boot report's `init-mark`). A byte written to the second ends the machine with it as exit code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::event::{Event, EventSender, Halt};
use crate::process;
use crate::timeline::{Mark, Timeline};

/// Whether init has said that it runs. Clones share it.
#[derive(Clone, Default)]
pub struct InitRuns(Arc<AtomicBool>);

impl InitRuns {
    /// It has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The two ports.
pub struct Told {
    /// Set by the mark.
    pub init_runs: InitRuns,
    /// Where the mark is noted.
    pub timeline: Timeline,
    /// Whom to tell the status.
    pub events: EventSender,
}

impl BusDevice for Told {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [_]) => {
                if !self.init_runs.0.swap(true, Ordering::Relaxed) {
                    process::trim_code(); // of what a boot needs, a running guest needs little
                }
                self.timeline.reach(Mark::InitMark);
            }
            (1, [status]) => self.events.send(Event::Halt(Halt::Exited(*status))),
            _ => {}
        }
    }
}

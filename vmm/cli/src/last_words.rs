//! What a guest prints after it has reported its end: it is not cut off.
//!
//! pvpanic comes first of all that a kernel does when it panics (its notifier has the highest priority in
//! drivers/misc/pvpanic/pvpanic.c); what it then prints ends with a reset, or with silence. A program that writes an
//! exit status may have printed more than the serial port's driver has sent: as long as that has more, it wants to be
//! interrupted when it can send.

use std::time::{Duration, Instant};

use tinyvmm::event::Halt;
use tinyvmm::machine::LiveMachine;

use crate::inbox::End;

/// After this long without a byte nothing more is to come. A CPU waits for a console's reader for less.
const SILENCE: Duration = Duration::from_millis(600);
/// How soon to look again.
const SOON: Duration = Duration::from_millis(10);

/// A guest that has reported its end and still runs.
pub struct LastWords {
    /// How it ends.
    pub halt: Halt,
    /// Bytes that it had sent when it was last looked at.
    sent: u64,
    /// Since when it has sent nothing.
    silent: Instant,
    /// When to look again.
    pub due: Instant,
}

impl LastWords {
    /// After `halt`, which a device has reported; `None` if it is the end.
    pub fn after(halt: &Halt, machine: &LiveMachine) -> Option<Self> {
        if !matches!(halt, Halt::Panic | Halt::Exited(_)) {
            return None;
        }
        let now = Instant::now();
        let mut words = Self { halt: halt.clone(), sent: 0, silent: now, due: now + SOON };
        (!words.are_over(machine)).then_some(words)
    }

    /// Whether nothing more is to come.
    pub fn are_over(&mut self, machine: &LiveMachine) -> bool {
        let now = Instant::now();
        self.due = now + SOON;
        let Some(handles) = machine.handles() else { return true };
        let Ok(port) = handles.serial.try_lock() else {
            self.silent = now; // a CPU is at it
            return false;
        };
        if port.sent() != self.sent {
            (self.sent, self.silent) = (port.sent(), now);
        }
        let is_done = matches!(self.halt, Halt::Exited(_)) && !port.has_more();
        is_done || now - self.silent >= SILENCE
    }

    /// How the machine ends then.
    pub fn end(self) -> End {
        End::Guest(self.halt)
    }
}

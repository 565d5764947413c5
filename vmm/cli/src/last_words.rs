//! Waits for what a guest prints after it has reported its end, so that it is not cut off.
//!
//! pvpanic's notifier has the highest priority in the kernel (drivers/misc/pvpanic/pvpanic.c), so it reports a panic
//! first; what the kernel prints then ends with a reset, or with silence. A program that writes an exit status may have
//! printed more than the serial port's driver has sent: as long as the driver has more, it has the transmitter's
//! interrupt enabled.

use std::time::{Duration, Instant};

use tinyvmm::event::Halt;
use tinyvmm::machine::LiveMachine;

use crate::inbox::End;

/// After this long without a byte the guest is done. A CPU waits less for a console's reader.
const SILENCE: Duration = Duration::from_millis(600);
/// The interval of checks.
const SOON: Duration = Duration::from_millis(10);

/// A guest that has reported its end and still runs.
pub struct LastWords {
    /// The end that the guest has reported.
    pub halt: Halt,
    /// Bytes that the guest had sent at the last check.
    sent: u64,
    /// Since when the guest has sent nothing.
    silent: Instant,
    /// When to check again.
    pub due: Instant,
}

impl LastWords {
    /// Begins to wait after `halt`, which a device has reported; `None` if the machine is at its end already.
    pub fn after(halt: &Halt, machine: &LiveMachine) -> Option<Self> {
        if !matches!(halt, Halt::Panic | Halt::Exited(_)) {
            return None;
        }
        let now = Instant::now();
        let mut words = Self { halt: halt.clone(), sent: 0, silent: now, due: now + SOON };
        (!words.are_over(machine)).then_some(words)
    }

    /// Whether the guest prints no more.
    pub fn are_over(&mut self, machine: &LiveMachine) -> bool {
        let now = Instant::now();
        self.due = now + SOON;
        let Some(handles) = machine.handles() else { return true };
        let Ok(port) = handles.serial.try_lock() else {
            self.silent = now; // a CPU holds the port
            return false;
        };
        if port.sent() != self.sent {
            (self.sent, self.silent) = (port.sent(), now);
        }
        let is_done = matches!(self.halt, Halt::Exited(_)) && !port.has_more();
        is_done || now - self.silent >= SILENCE
    }

    /// The end of the machine.
    pub fn end(self) -> End {
        End::Guest(self.halt)
    }
}

//! The devices by which a guest ends the machine: ACPI sleep and reset registers, the i8042 reset line, pvpanic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::event::{Event, EventSender, Halt};

/// SLP_TYP of S5, as in the DSDT's `_S5_`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value for the reset register, as in the FADT.
pub const RESET_VALUE: u8 = 1;
/// SLP_EN of the sleep control register (ACPI 6.5, 4.8.3.7); SLP_TYP is below it.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The i8042 command that pulses the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;
/// The i8042's status: there is something to read.
const OUTPUT_FULL: u8 = 1;
/// pvpanic's events (QEMU docs/specs/pvpanic): panicked, crash kernel loaded.
const PVPANIC_EVENTS: u8 = 0b11;

/// Whether this boot's kernel has panicked. A reset that follows is the panic's.
#[derive(Clone, Default)]
pub struct PanicFlag(Arc<AtomicBool>);

impl PanicFlag {
    /// Sets whether the kernel has panicked.
    pub fn set(&self, panicked: bool) {
        self.0.store(panicked, Ordering::Relaxed);
    }

    /// The cause of `halt`: a reset after a panic is the panic's.
    pub fn explain(&self, halt: Halt) -> Halt {
        let panicked = self.0.load(Ordering::Relaxed);
        if panicked && [Halt::Reset, Halt::TripleFault].contains(&halt) {
            return Halt::Panic;
        }
        halt
    }
}

/// ACPI sleep control (offset 0), sleep status (1) and reset (2) registers.
pub struct Power {
    /// Gets the guest's end.
    pub events: EventSender,
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let halt = match (offset, data) {
            (0, [value]) if *value == SLEEP_ENABLE | SLEEP_TYPE_S5 << 2 => Halt::PowerOff,
            (2, [RESET_VALUE]) => Halt::Reset,
            _ => return,
        };
        self.events.send(Event::Halt(halt));
    }
}

/// Port 0x64 of a keyboard controller that can only reset the machine.
pub struct I8042 {
    /// Gets the guest's end.
    pub events: EventSender,
}

impl BusDevice for I8042 {
    /// The input buffer is always empty: the guest's reboot code waits for that (kb_wait in arch/x86/kernel/reboot.c). The
    /// output buffer is always full: so a guest without ACPI, which probes for a keyboard, finds none at once (i8042_flush
    /// in drivers/input/serio/i8042.c) instead of waiting a second for answers.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(OUTPUT_FULL);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.events.send(Event::Halt(Halt::Reset));
        }
    }
}

/// The port to which a guest's pvpanic driver reports a panic.
pub struct Pvpanic {
    /// A panic was reported. Further ones are ignored: a guest may report them for ever.
    pub reported: bool,
    /// Gets the panic.
    pub events: EventSender,
}

impl BusDevice for Pvpanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PVPANIC_EVENTS);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [event] = data
            && event & 1 != 0
            && !std::mem::replace(&mut self.reported, true)
        {
            self.events.send(Event::Halt(Halt::Panic));
        }
    }
}

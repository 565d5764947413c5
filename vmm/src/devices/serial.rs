//! COM1: a 16550A from vm-superio between the guest and the console.

use std::io::{self, Write};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use super::power::PanicFlag;
use crate::bus::BusDevice;
use crate::timeline::{Mark, Timeline};

/// How the kernel starts its last message (kernel/panic.c).
const PANIC_MESSAGE: &[u8] = b"Kernel panic - not syncing";
/// How it ends the one before it starts init (`run_init_process`, init/main.c).
const INIT_MESSAGE: &[u8] = b"as init process";

/// Most bytes that a kernel prints between its panic and the reset: registers and a trace.
const LAST_WORDS: usize = 32 << 10;

/// The interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Listens for a phrase whose first letter occurs in it once.
struct Ear {
    phrase: &'static [u8],
    /// How much of it the last bytes were.
    matched: usize,
}

impl Ear {
    fn new(phrase: &'static [u8]) -> Self {
        Self { phrase, matched: 0 }
    }

    /// True if `byte` ends the phrase.
    fn hears(&mut self, byte: u8) -> bool {
        // The first letter is nowhere else, so a mismatch can only start the phrase again.
        self.matched = match self.phrase.get(self.matched) {
            Some(expected) if *expected == byte => self.matched + 1,
            _ => usize::from(self.phrase.first() == Some(&byte)),
        };
        self.matched == self.phrase.len()
    }
}

/// Passes what the guest sends on to the console, and listens to it.
struct Transmitter {
    output: Output,
    panicked: PanicFlag,
    panic: Ear,
    /// How many bytes since the panic.
    since: usize,
    init: Ear,
    timeline: Timeline,
    /// Something was sent.
    spoken: bool,
}

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.output.push(*byte);
            self.listen(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transmitter {
    fn new(output: Output, panicked: PanicFlag, timeline: Timeline) -> Self {
        let (panic, init) = (Ear::new(PANIC_MESSAGE), Ear::new(INIT_MESSAGE));
        Self { output, panicked, panic, since: 0, init, timeline, spoken: false }
    }

    fn listen(&mut self, byte: u8) {
        if !std::mem::replace(&mut self.spoken, true) {
            self.timeline.reach(Mark::FirstOutput);
        }
        if self.init.hears(byte) {
            self.timeline.reach(Mark::InitStarted);
        }
        self.since += 1;
        if self.panic.hears(byte) {
            self.since = 0;
            self.panicked.set(true);
        } else if self.since == LAST_WORDS {
            self.panicked.set(false); // it went on: someone only printed these words
        }
    }
}

/// The serial port.
pub struct SerialPort {
    uart: Serial<Line, NoEvents, Transmitter>,
    /// A page that starts with the line status register and those after it, for a guest that reads them
    /// without asking us. None of these reads has a side effect.
    status: Option<MmapRegion>,
}

impl SerialPort {
    /// A port that raises `interrupt` and sends to `output`; `status` is a page that the guest sees.
    pub fn new(
        interrupt: EventFd,
        output: Output,
        panicked: PanicFlag,
        timeline: Timeline,
        status: Option<MmapRegion>,
    ) -> Self {
        let transmitter = Transmitter::new(output, panicked, timeline);
        let mut port = Self { uart: Serial::new(Line(interrupt), transmitter), status };
        port.show_status();
        port
    }

    /// Gives input to the guest, and returns how many bytes it had room for.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.show_status();
        taken
    }

    fn show_status(&mut self) {
        if let Some(page) = &self.status {
            let status = [5, 6, 7].map(|register| self.uart.read(register));
            page.as_volatile_slice().copy_from(&status);
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are a byte each; a wider access reads the ones that follow.
        for (register, byte) in (offset as u8..).zip(data) {
            *byte = self.uart.read(register);
        }
        self.show_status();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset as u8..).zip(data) {
            if let Err(error) = self.uart.write(register, *byte) {
                log::debug!("serial port: write lost: {error:?}");
            }
        }
        self.show_status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmitter() -> Transmitter {
        Transmitter::new(Output::discard(), PanicFlag::default(), Timeline::default())
    }

    #[test]
    fn a_panic_is_heard_in_what_the_guest_prints() {
        use crate::event::Halt;
        let mut heard = transmitter();
        heard.write_all(b"[ 1.0] KKernel panic - not syncing: VFS").unwrap();
        assert_eq!(heard.panicked.explain(Halt::Reset), Halt::Panic);
        heard.write_all(&[b'.'; LAST_WORDS]).unwrap();
        assert_eq!(heard.panicked.explain(Halt::Reset), Halt::Reset, "long ago");
        let mut not = transmitter();
        not.write_all(b"Kernel panic - not  syncing").unwrap();
        assert_eq!(not.panicked.explain(Halt::Reset), Halt::Reset);
    }
}

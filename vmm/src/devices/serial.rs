//! COM1: a 16550A from vm-superio between the guest and the console.

use std::cell::Cell;
use std::convert::Infallible;
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

/// Most bytes that a kernel prints between its panic and the reset: all of its tasks, with `panic_print`.
const LAST_WORDS: u64 = 256 << 10;

/// The register that tells which interrupt it was.
const IIR: u8 = 2;
/// Bits of the registers that are shown on a page: of IER and, the first, of LSR; of LCR; of IIR.
const RECEIVED: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const DIVISOR_LATCH: u8 = 1 << 7;
const FIFOS_ENABLED: u8 = 0b1100_0000;

/// The interrupt line: raised once all registers show why.
struct Line {
    event: EventFd,
    wanted: Cell<bool>,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.wanted.set(true);
        Ok(())
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
    /// How many bytes there were when it was heard of.
    panicked_at: Option<u64>,
    init: Ear,
    timeline: Timeline,
    /// Bytes so far.
    sent: u64,
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
        Self { output, panicked, panic, panicked_at: None, init, timeline, sent: 0 }
    }

    fn listen(&mut self, byte: u8) {
        if self.sent == 0 {
            self.timeline.reach(Mark::FirstOutput);
        }
        self.sent += 1;
        if self.init.hears(byte) {
            self.timeline.reach(Mark::InitStarted);
        }
        if self.panic.hears(byte) {
            self.panicked_at = Some(self.sent);
            self.panicked.set(true);
        } else if self.panicked_at.is_some_and(|at| self.sent - at == LAST_WORDS) {
            self.panicked.set(false); // it went on: someone only printed these words
        }
    }
}

type Uart = Serial<Line, NoEvents, Transmitter>;

/// The serial port.
pub struct SerialPort {
    uart: Uart,
    page: Option<RegisterPage>,
}

impl SerialPort {
    /// A port that raises `interrupt` and sends to `output`. The guest reads its registers from `page`, if there is one.
    pub fn new(
        interrupt: EventFd,
        output: Output,
        panicked: PanicFlag,
        timeline: Timeline,
        page: Option<MmapRegion>,
    ) -> Self {
        let transmitter = Transmitter::new(output, panicked, timeline);
        let page = page.map(|page| RegisterPage { page, enabled: 0, iir: 0 });
        let line = Line { event: interrupt, wanted: Cell::new(false) };
        let mut port = Self { uart: Serial::new(line, transmitter), page };
        port.show();
        port
    }

    /// Gives input to the guest, and returns how many bytes it had room for.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.show();
        taken
    }

    /// How many bytes the guest has sent.
    pub fn sent(&self) -> u64 {
        self.uart.writer().sent
    }

    /// Whether its driver waits for the interrupt that lets it send more.
    pub fn has_more(&self) -> bool {
        self.uart.state().interrupt_enable & TRANSMITTER_EMPTY != 0
    }

    /// Shows the guest what has become of an access, or of input.
    fn show(&mut self) {
        if let Some(page) = &mut self.page {
            page.show(&mut self.uart);
        }
        let line = self.uart.interrupt_evt();
        if line.wanted.take()
            && let Err(error) = line.event.write(1)
        {
            log::debug!("serial port: interrupt lost: {error}");
        }
    }
}

/// A page that starts with all registers but the first, for a guest that reads them without asking us. What it sends
/// is gone at once, so that their state changes only when we are asked, or have input for it.
struct RegisterPage {
    page: MmapRegion,
    /// Interrupts that the driver wants, as it said last.
    enabled: u8,
    iir: u8,
}

impl RegisterPage {
    /// Puts what `uart`'s registers say there. (Their names are those of the 16550D's data sheet, table II.)
    fn show(&mut self, uart: &mut Uart) {
        // A driver that reads IIR acknowledges what it says, but nobody sees that here. So it is done for it, at once,
        // and IIR says what there is to do until that is done: to take input; to send, or to want no more.
        let [ier, _, lcr, mcr, lsr, msr, scr] =
            [1, 2, 3, 4, 5, 6, 7].map(|register| uart.read(register));
        if lcr & DIVISOR_LATCH == 0 {
            self.enabled = ier;
        }
        self.iir = FIFOS_ENABLED
            | match self.enabled {
                enabled if enabled & lsr & RECEIVED != 0 => 0b100,
                enabled if enabled & TRANSMITTER_EMPTY != 0 => 0b010,
                _ => 0b001,
            };
        self.page.as_volatile_slice().copy_from(&[ier, self.iir, lcr, mcr, lsr, msr, scr]);
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are a byte each; a wider access reads the ones that follow.
        for (register, byte) in (offset as u8..).zip(data) {
            *byte = match &self.page {
                Some(page) if register == IIR => page.iir,
                _ => self.uart.read(register),
            };
        }
        self.show();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset as u8..).zip(data) {
            if let Err(error) = self.uart.write(register, *byte) {
                log::debug!("serial port: write lost: {error:?}");
            }
        }
        self.show();
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
        heard.write_all(&[b'.'; LAST_WORDS as usize]).unwrap();
        assert_eq!(heard.panicked.explain(Halt::Reset), Halt::Reset, "long ago");
        let mut not = transmitter();
        not.write_all(b"Kernel panic - not  syncing").unwrap();
        assert_eq!(not.panicked.explain(Halt::Reset), Halt::Reset);
    }
}

//! COM1: a 16550A from vm-superio between the guest and the console.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vm_memory::{MmapRegion, VolatileMemory};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use super::power::PanicFlag;
use crate::bus::BusDevice;
use crate::timeline::{Mark, Timeline};

/// The start of the kernel's panic message (kernel/panic.c).
const PANIC_MESSAGE: &[u8] = b"Kernel panic - not syncing";
/// The end of the kernel's last message before init (`run_init_process`, init/main.c).
const INIT_MESSAGE: &[u8] = b"as init process";

/// Most bytes that a kernel prints between its panic and the reset: all of its tasks, with `panic_print`.
const LAST_WORDS: u64 = 256 << 10;

/// The interrupt identification register.
const IIR: u8 = 2;
/// Bits of the registers on the page: of IER and, the first, of LSR; of LCR; of IIR.
const RECEIVED: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const DIVISOR_LATCH: u8 = 1 << 7;
const FIFOS_ENABLED: u8 = 0b1100_0000;

/// The interrupt line: raised once all registers show the cause.
struct InterruptLine {
    event: EventFd,
    wanted: Cell<bool>,
}

impl Trigger for InterruptLine {
    type E = Infallible;

    fn trigger(&self) -> std::result::Result<(), Infallible> {
        self.wanted.set(true);
        Ok(())
    }
}

/// Detects a phrase whose first letter occurs in it once.
struct PhraseDetector {
    phrase: &'static [u8],
    /// The number of the phrase's bytes that the last bytes match.
    matched: usize,
}

impl PhraseDetector {
    fn new(phrase: &'static [u8]) -> Self {
        Self { phrase, matched: 0 }
    }

    /// True if `byte` completes the phrase.
    fn completes(&mut self, byte: u8) -> bool {
        // The first letter occurs only once, so a mismatch can only be a new start.
        self.matched = match self.phrase.get(self.matched) {
            Some(expected) if *expected == byte => self.matched + 1,
            _ => usize::from(self.phrase.first() == Some(&byte)),
        };
        self.matched == self.phrase.len()
    }
}

/// Passes sent bytes to the console, and detects the kernel's messages in them.
struct Transmitter {
    output: Output,
    panicked: PanicFlag,
    panic: PhraseDetector,
    /// Bytes sent when the panic message was detected.
    panicked_at: Option<u64>,
    init: PhraseDetector,
    timeline: Timeline,
    /// Bytes sent so far.
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
        let (panic, init) = (PhraseDetector::new(PANIC_MESSAGE), PhraseDetector::new(INIT_MESSAGE));
        Self { output, panicked, panic, panicked_at: None, init, timeline, sent: 0 }
    }

    fn listen(&mut self, byte: u8) {
        if self.sent == 0 {
            self.timeline.reach(Mark::FirstOutput);
        }
        self.sent += 1;
        if self.init.completes(byte) {
            self.timeline.reach(Mark::InitStarted);
        }
        if self.panic.completes(byte) {
            self.panicked_at = Some(self.sent);
            self.panicked.set(true);
        } else if self.panicked_at.is_some_and(|at| self.sent - at == LAST_WORDS) {
            self.panicked.set(false); // the guest continued: it only printed these words
        }
    }
}

type Uart16550 = Serial<InterruptLine, NoEvents, Transmitter>;

/// What is saved of the port: its registers as [`vm_superio::SerialState`] has them, and input that the guest has not
/// read.
#[derive(Debug, Serialize, Deserialize)]
pub struct SerialSaved {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

/// The serial port.
pub struct SerialPort {
    uart: Uart16550,
    page: Option<RegisterPage>,
}

impl SerialPort {
    /// A port that raises `interrupt` and sends to `output`. The guest reads its registers from `page`, if there is
    /// one.
    pub fn new(
        interrupt: EventFd,
        output: Output,
        panicked: PanicFlag,
        timeline: Timeline,
        page: Option<MmapRegion>,
    ) -> Self {
        let transmitter = Transmitter::new(output, panicked, timeline);
        let page = page.map(|page| RegisterPage { page, enabled: 0, iir: 0 });
        let line = InterruptLine { event: interrupt, wanted: Cell::new(false) };
        let mut port = Self { uart: Serial::new(line, transmitter), page };
        port.show();
        port
    }

    /// The port's state.
    pub fn save(&self) -> SerialSaved {
        let state = self.uart.state();
        SerialSaved {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// The port with the state `saved` instead of its own.
    pub fn restored(self, saved: &SerialSaved) -> Result<Self> {
        let state = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.input.clone(),
        };
        let event = self.uart.interrupt_evt().event.try_clone()?;
        let line = InterruptLine { event, wanted: Cell::new(false) };
        let uart = Serial::from_state(&state, line, NoEvents, self.uart.into_writer());
        let uart = uart.ok().context("the serial port's FIFO holds less input")?;
        let mut page = self.page;
        if let Some(page) = &mut page {
            page.enabled = saved.interrupt_enable;
        }
        let mut port = Self { uart, page };
        port.show();
        Ok(port)
    }

    /// The interrupt line.
    pub fn line(&self) -> &EventFd {
        &self.uart.interrupt_evt().event
    }

    /// Raises the interrupt that the guest may not have seen.
    pub fn raise_again(&mut self) {
        self.uart.interrupt_evt().wanted.set(true);
        self.show();
    }

    /// Passes input to the guest; returns the number of bytes that the FIFO took.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.show();
        taken
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.uart.writer().sent
    }

    /// Whether the driver has the transmitter's interrupt enabled, to send more.
    pub fn has_more(&self) -> bool {
        self.uart.state().interrupt_enable & TRANSMITTER_EMPTY != 0
    }

    /// Updates the page after an access, or after input.
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

/// A page that starts with all registers but the first, for a guest that reads them without exits. Sent bytes leave at
/// once, so the registers change only at the guest's writes and with input.
struct RegisterPage {
    page: MmapRegion,
    /// The interrupts that the driver has enabled.
    enabled: u8,
    iir: u8,
}

impl RegisterPage {
    /// Copies `uart`'s registers to the page. (Their names are those of the 16550D's data sheet, table II.)
    fn show(&mut self, uart: &mut Uart16550) {
        // A read of IIR acknowledges an interrupt, but here such reads are not seen. So the interrupt is acknowledged
        // at once, and IIR keeps showing what the driver has to do: to read input; to send, or to disable the
        // interrupt.
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
        // Registers have a byte each; a wider access reads the following ones as well.
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

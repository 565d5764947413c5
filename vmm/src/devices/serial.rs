//! COM1: a 16550A from vm-superio between the guest and the console.

use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use super::power::PanicFlag;
use crate::bus::BusDevice;

/// How the kernel starts its last message (kernel/panic.c).
const PANIC_MESSAGE: &[u8] = b"Kernel panic - not syncing";

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

/// Passes what the guest sends on to the console, and listens for a panic in it.
struct Transmitter {
    output: Output,
    panicked: PanicFlag,
    /// How much of `PANIC_MESSAGE` the last bytes were.
    matched: usize,
    /// How many bytes since the message.
    since: usize,
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
    fn listen(&mut self, byte: u8) {
        // The message's first letter occurs in it once, so a mismatch can only start it again.
        self.matched = match PANIC_MESSAGE.get(self.matched) {
            Some(expected) if *expected == byte => self.matched + 1,
            _ => usize::from(byte == PANIC_MESSAGE[0]),
        };
        self.since += 1;
        if self.matched == PANIC_MESSAGE.len() {
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
}

impl SerialPort {
    /// A port that raises `interrupt` and sends to `output`.
    pub fn new(interrupt: EventFd, output: Output, panicked: PanicFlag) -> Self {
        let transmitter = Transmitter { output, panicked, matched: 0, since: 0 };
        Self { uart: Serial::new(Line(interrupt), transmitter) }
    }

    /// Gives input to the guest, and returns how many bytes it had room for.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are a byte each; a wider access reads the ones that follow.
        for (register, byte) in (offset as u8..).zip(data) {
            *byte = self.uart.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset as u8..).zip(data) {
            if let Err(error) = self.uart.write(register, *byte) {
                log::debug!("serial port: write lost: {error:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmitter() -> Transmitter {
        Transmitter {
            output: Output::discard(),
            panicked: PanicFlag::default(),
            matched: 0,
            since: 0,
        }
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

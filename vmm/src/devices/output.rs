//! Output of the guest that is not written yet: a bounded buffer between vCPUs and the console's thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sync::lock;

/// Most bytes in the buffer.
const CAPACITY: usize = 64 << 10;
/// How long a full buffer may block the guest before bytes are dropped.
const PATIENCE: Duration = Duration::from_millis(500);

/// The guest's side of the console.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    buffer: Mutex<OutputBuffer>,
    /// Notified when the buffer has room again.
    drained: Condvar,
    /// Written when the buffer is no longer empty.
    filled: EventFd,
}

#[derive(Default)]
struct OutputBuffer {
    bytes: Vec<u8>,
    /// The reader does not read: bytes are dropped at once, until it does.
    stalled: bool,
    /// The stall was logged, once.
    stall_logged: bool,
    /// There never is a reader.
    discard: bool,
}

impl Output {
    /// An empty buffer; with `discard` it stays empty, as there is no reader.
    pub fn new(discard: bool) -> Result<Self> {
        let buffer = Mutex::new(OutputBuffer { discard, ..Default::default() });
        let filled = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { buffer, drained: Condvar::new(), filled })))
    }

    /// An output without a reader.
    #[cfg(test)]
    pub fn discard() -> Self {
        Self::new(true).unwrap()
    }

    /// Takes a byte from the guest. Blocks for at most `PATIENCE`, then drops it.
    pub fn push(&self, byte: u8) {
        let mut buffer = lock(&self.0.buffer);
        if buffer.discard {
            return;
        }
        if buffer.bytes.len() >= CAPACITY && !buffer.stalled {
            let full = |b: &mut OutputBuffer| b.bytes.len() >= CAPACITY;
            let waited = self.0.drained.wait_timeout_while(buffer, PATIENCE, full);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            buffer.stalled = full(&mut buffer);
            if buffer.stalled && !std::mem::replace(&mut buffer.stall_logged, true) {
                log::warn!("nobody reads the console: its output is dropped until someone does");
            }
        }
        if buffer.bytes.len() < CAPACITY {
            buffer.bytes.push(byte);
            if buffer.bytes.len() == 1 {
                // Cannot fail: the counter is far below its limit.
                let _ = self.0.filled.write(1);
            }
        }
    }

    /// Readable when the buffer is no longer empty; to be read before the buffer is.
    pub fn filled(&self) -> &EventFd {
        &self.0.filled
    }

    /// Whether the buffer is empty.
    pub fn is_empty(&self) -> bool {
        lock(&self.0.buffer).bytes.is_empty()
    }

    /// Whether `bytes` more can be pushed without blocking.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        let buffer = lock(&self.0.buffer);
        buffer.discard || buffer.stalled || buffer.bytes.len() + bytes <= CAPACITY
    }

    /// A copy of the first bytes, at most `max`.
    pub fn front(&self, max: usize) -> Vec<u8> {
        lock(&self.0.buffer).bytes.iter().take(max).copied().collect()
    }

    /// Removes the first `count` bytes, which have been written.
    pub fn written(&self, count: usize) {
        let mut buffer = lock(&self.0.buffer);
        buffer.bytes.drain(..count);
        if buffer.bytes.is_empty() {
            buffer.bytes = Vec::new(); // frees the memory of a flood
        }
        buffer.stalled = false;
        self.0.drained.notify_all();
    }

    /// There is no reader any more.
    pub fn close(&self) {
        *lock(&self.0.buffer) = OutputBuffer { discard: true, ..Default::default() };
        self.0.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_nobody_reads_is_bounded_in_memory_and_time() {
        let output = Output::new(false).unwrap();
        // Blocks once: to block for each byte would take a day.
        for _ in 0..4 * CAPACITY {
            output.push(b'x');
        }
        assert_eq!(output.front(usize::MAX).len(), CAPACITY);
        output.written(1);
        output.push(b'y');
        assert_eq!(output.front(usize::MAX).last(), Some(&b'y'));
    }
}

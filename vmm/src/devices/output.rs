//! What the guest prints and nobody has written out yet: a bounded buffer between vCPUs and console.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sync::lock;

/// Most bytes that wait to be written out.
const CAPACITY: usize = 64 << 10;
/// How long a full buffer may hold up the guest before bytes are dropped.
const PATIENCE: Duration = Duration::from_millis(500);

/// The guest's end of the console.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    buffer: Mutex<Buffer>,
    /// Told when there is room again.
    drained: Condvar,
    /// Written when the buffer stops being empty.
    filled: EventFd,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The reader does not read: drop at once instead of waiting, until it does.
    stalled: bool,
    /// The user has been told of that, once.
    stall_told: bool,
    /// Nobody reads, ever.
    discard: bool,
}

impl Output {
    /// An empty buffer; with `discard` it stays empty, since nobody reads.
    pub fn new(discard: bool) -> Result<Self> {
        let buffer = Mutex::new(Buffer { discard, ..Default::default() });
        let filled = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { buffer, drained: Condvar::new(), filled })))
    }

    /// An output that nobody reads.
    #[cfg(test)]
    pub fn discard() -> Self {
        Self::new(true).unwrap()
    }

    /// Takes a byte that the guest sends. Blocks for `PATIENCE` at most, and then drops.
    pub fn push(&self, byte: u8) {
        let mut buffer = lock(&self.0.buffer);
        if buffer.discard {
            return;
        }
        if buffer.bytes.len() >= CAPACITY && !buffer.stalled {
            let full = |b: &mut Buffer| b.bytes.len() >= CAPACITY;
            let waited = self.0.drained.wait_timeout_while(buffer, PATIENCE, full);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            buffer.stalled = full(&mut buffer);
            if buffer.stalled && !std::mem::replace(&mut buffer.stall_told, true) {
                log::warn!("nobody reads the console: its output is dropped until someone does");
            }
        }
        if buffer.bytes.len() < CAPACITY {
            buffer.bytes.push(byte);
            if buffer.bytes.len() == 1 {
                // Cannot fail: the counter is far from its limit.
                let _ = self.0.filled.write(1);
            }
        }
    }

    /// Readable when the buffer has stopped being empty; to be read before it is looked at.
    pub fn filled(&self) -> &EventFd {
        &self.0.filled
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        lock(&self.0.buffer).bytes.is_empty()
    }

    /// Whether `bytes` more can be pushed without a wait.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        let buffer = lock(&self.0.buffer);
        buffer.discard || buffer.stalled || buffer.bytes.len() + bytes <= CAPACITY
    }

    /// A copy of the first bytes that wait, `most` of them at most.
    pub fn front(&self, most: usize) -> Vec<u8> {
        lock(&self.0.buffer).bytes.iter().take(most).copied().collect()
    }

    /// The first `count` bytes have been written out.
    pub fn written(&self, count: usize) {
        let mut buffer = lock(&self.0.buffer);
        buffer.bytes.drain(..count);
        if buffer.bytes.is_empty() {
            buffer.bytes = Vec::new(); // a flood's memory goes back
        }
        buffer.stalled = false;
        self.0.drained.notify_all();
    }

    /// Nobody will read any more.
    pub fn close(&self) {
        *lock(&self.0.buffer) = Buffer { discard: true, ..Default::default() };
        self.0.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_nobody_reads_is_bounded_in_memory_and_time() {
        let output = Output::new(false).unwrap();
        // One wait: to wait for each byte would take a day.
        for _ in 0..4 * CAPACITY {
            output.push(b'x');
        }
        assert_eq!(output.front(usize::MAX).len(), CAPACITY);
        output.written(1);
        output.push(b'y');
        assert_eq!(output.front(usize::MAX).last(), Some(&b'y'));
    }
}

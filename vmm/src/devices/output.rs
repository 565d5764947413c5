//! Output of the guest that is not written yet: a bounded buffer between vCPUs and the console's thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::rate::Limiter;
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
    /// A limit of bytes: what is beyond it is dropped.
    limiter: Option<Limiter>,
    /// Bytes that were.
    beyond: u64,
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
        if buffer.limiter.as_mut().is_some_and(|limiter| !limiter.admit(1, Instant::now())) {
            buffer.beyond += 1;
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

    /// Has `limiter` drop what comes too fast, in place of an earlier one.
    pub fn set_limiter(&self, limiter: Option<Limiter>) {
        lock(&self.0.buffer).limiter = limiter;
    }

    /// How many bytes the limit has dropped.
    pub fn beyond_limit(&self) -> u64 {
        lock(&self.0.buffer).beyond
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
        let mut buffer = lock(&self.0.buffer);
        *buffer = OutputBuffer { discard: true, beyond: buffer.beyond, ..Default::default() };
        self.0.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bucket, RateLimit};

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

    #[test]
    fn what_is_beyond_the_limit_is_dropped_and_counted() {
        let output = Output::new(false).unwrap();
        let bucket = Bucket { size: 2, one_time_burst: Some(3), refill_time: 1 << 40 };
        let limit = RateLimit { bandwidth: Some(bucket), ops: None };
        output.set_limiter(Limiter::new(&limit, Instant::now()));
        b"abcdefg".iter().for_each(|byte| output.push(*byte));
        assert_eq!((&output.front(9)[..], output.beyond_limit()), (&b"abcde"[..], 2));
        output.set_limiter(None);
        output.push(b'h');
        assert_eq!((&output.front(9)[..], output.beyond_limit()), (&b"abcdeh"[..], 2));
    }
}

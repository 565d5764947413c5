//! Output of the guest that waits until it is known whether it is shown: that of a console which a command may not need.

use std::fs::File;
use std::io::Write;

use super::guest_report::Reported;

/// Most bytes that are kept; the last ones are.
const MAX: usize = 64 << 10;

/// The last of such output.
#[derive(Default)]
pub(super) struct Held {
    /// More is added, and none is shown.
    pub waits: bool,
    bytes: Vec<u8>,
}

impl Held {
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.bytes.drain(..self.bytes.len().saturating_sub(MAX));
    }

    /// Whether there is some that can be shown.
    pub fn is_due(&self) -> bool {
        !self.waits && !self.bytes.is_empty()
    }

    /// Writes at most `most` bytes to `sink`, or gives up what it does not take.
    pub fn show(&mut self, sink: &mut File, most: usize) {
        match sink.write(&self.bytes[..self.bytes.len().min(most)]) {
            Ok(count) => drop(self.bytes.drain(..count)),
            Err(error) if super::console::is_retryable(&error) => {}
            Err(_) => self.bytes = Vec::new(),
        }
    }

    /// Ends the waiting, as the machine has ended: nobody needs what a guest has said that then had a status.
    pub fn conclude(&mut self, reported: &Reported) {
        if std::mem::take(&mut self.waits) && reported.has_status() {
            self.bytes = Vec::new();
        }
    }
}

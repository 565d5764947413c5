//! Frames as they come in.

use alloc::boxed::Box;
use alloc::vec;

use crate::{HEAD, HELLO, Kind, MAX_LEN};

/// Why what came in is not the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The other side speaks something else.
    Stranger,
    /// It speaks another version.
    Version,
    /// A frame is longer than any.
    Length,
    /// There is no such kind of frame.
    Kind,
}

/// Collects bytes until they are frames; it has room for the longest one.
pub struct Inbound {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    greeted: bool,
}

impl Default for Inbound {
    fn default() -> Self {
        let bytes = vec![0; HEAD + MAX_LEN].into_boxed_slice();
        Self { bytes, start: 0, end: 0, greeted: false }
    }
}

impl Inbound {
    /// Where the next bytes go. It is not empty once [`Self::next`] has returned `None`.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Adds the first `len` bytes of the room.
    pub fn add(&mut self, len: usize) {
        self.end = (self.end + len).min(self.bytes.len());
    }

    /// Whether the other side has said hello.
    ///
    /// # Errors
    ///
    /// It has said something else.
    pub fn greeted(&mut self) -> Result<bool, Malformed> {
        let there = &self.bytes[self.start..self.end];
        if !self.greeted {
            let len = there.len().min(HELLO.len());
            if there[..len] != HELLO[..len] {
                let name = HELLO.len() - 2; // without the version and the end of the line
                let is_ours = len >= name && there[..name] == HELLO[..name];
                return Err(if is_ours { Malformed::Version } else { Malformed::Stranger });
            }
            if len == HELLO.len() {
                self.start += len;
                self.greeted = true;
            }
        }
        Ok(self.greeted)
    }

    /// The next frame, once all of it is there.
    ///
    /// # Errors
    ///
    /// What came in is not the protocol: all that follows is lost.
    #[allow(clippy::should_implement_trait, reason = "the payload is borrowed")]
    pub fn next(&mut self) -> Result<Option<(Kind, &[u8])>, Malformed> {
        if !self.greeted()? {
            return Ok(None);
        }
        let [kind, a, b, c, d, rest @ ..] = &self.bytes[self.start..self.end] else {
            return Ok(None);
        };
        let kind = Kind::of(*kind).ok_or(Malformed::Kind)?;
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        if len > MAX_LEN {
            return Err(Malformed::Length);
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        self.start += HEAD + len;
        Ok(Some((kind, payload)))
    }
}

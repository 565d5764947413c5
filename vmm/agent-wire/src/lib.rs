//! The protocol between tinyvmm's command and its agent in a guest, version 1. Neither side believes the other.
//!
//! The agent listens on the vsock port [`PORT`]; a connection is for one request, which may follow an `Identity`.
//! Both sides send [`HELLO`] first, then frames: a kind (1 byte), the payload's length (4 bytes, little-endian, at most
//! [`MAX_LEN`]), the payload.
//!
//! | request | then, of the command | then, of the agent |
//! |---|---|---|
//! | `Exec`: [`Exec`] | `Input`, `Size`, `Signal` | `Output`, `Errors`, `Taken`, at last `Status` or `Failure` |
//! | `Identity`: [`Identity`] | nothing | `Done` or `Failure` |
//! | `Ready`: empty | nothing | `Done` |
//!
//! An `Input` without bytes is the end of the input. At most [`WINDOW`] bytes of input may be under way: `Taken` says of
//! how many more the program's pipe has taken. Output has no such limit: who does not read holds up the program.

#![no_std]

extern crate alloc;

mod fields;
mod inbound;
mod requests;

use alloc::vec::Vec;

pub use self::inbound::{Inbound, Malformed};
pub use self::requests::{Exec, Identity};

/// The agent's port.
pub const PORT: u32 = 1024;
/// What both sides send first: the protocol's name and version.
pub const HELLO: &[u8; 16] = b"tinyvmm-agent 1\n";
/// Most bytes of a payload.
pub const MAX_LEN: usize = 128 << 10;
/// Most bytes of input that may be under way.
pub const WINDOW: usize = 64 << 10;
/// Bytes of a frame before its payload.
pub const HEAD: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Run a program.
    Exec = 1,
    /// Bytes for the program's standard input; none are its end.
    Input = 2,
    /// The terminal's size: rows and columns, 2 bytes each.
    Size = 3,
    /// A signal for the program's process group: its number, 1 byte.
    Signal = 4,
    /// Take an identity.
    Identity = 5,
    /// Answer at once.
    Ready = 6,
    /// Bytes of the program's standard output, or of its terminal.
    Output = 64,
    /// Bytes of its standard error.
    Errors = 65,
    /// How many more bytes of input it has taken, 4 bytes.
    Taken = 66,
    /// The program has ended, 2 bytes: 0 and its exit status, or 1 and the signal that ended it.
    Status = 67,
    /// The request failed: an exit code as docker's (1 byte), and why.
    Failure = 68,
    /// The request is carried out.
    Done = 69,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Exec,
        Self::Input,
        Self::Size,
        Self::Signal,
        Self::Identity,
        Self::Ready,
        Self::Output,
        Self::Errors,
        Self::Taken,
        Self::Status,
        Self::Failure,
        Self::Done,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Appends a frame. A payload that is too long is cut off.
pub fn put(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let payload = &payload[..payload.len().min(MAX_LEN)];
    out.push(kind as u8);
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(payload);
}

/// The payload of `Size`.
pub fn size(rows: u16, columns: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// Rows and columns of a payload of `Size`.
pub fn parse_size(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *payload else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

#[cfg(test)]
mod tests;

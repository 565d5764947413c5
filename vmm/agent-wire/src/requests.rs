//! The payloads of requests. What an agent does not know in one, it refuses: an older one does not do half of it.

use alloc::vec::Vec;

use crate::fields::{Fields, put};
use crate::{MAX_LEN, parse_size, size};

/// A program to run. No text has a zero byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; none stand for the user's shell.
    pub args: Vec<Vec<u8>>,
    /// `NAME=VALUE` each, besides what the agent sets: PATH, HOME and USER.
    pub env: Vec<Vec<u8>>,
    /// The working folder; without one the user's home, or `/`.
    pub folder: Option<Vec<u8>>,
    /// Name or number, `USER[:GROUP]`; root without one.
    pub user: Option<Vec<u8>>,
    /// A terminal of this many rows and columns instead of pipes.
    pub terminal: Option<(u16, u16)>,
}

const ARG: u8 = 1;
const ENV: u8 = 2;
const FOLDER: u8 = 3;
const USER: u8 = 4;
const TERMINAL: u8 = 5;

impl Exec {
    /// The payload; `None` if it is longer than a frame's.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.args.iter().for_each(|arg| put(&mut out, ARG, arg));
        self.env.iter().for_each(|env| put(&mut out, ENV, env));
        self.folder.iter().for_each(|folder| put(&mut out, FOLDER, folder));
        self.user.iter().for_each(|user| put(&mut out, USER, user));
        self.terminal.iter().for_each(|(rows, cols)| put(&mut out, TERMINAL, &size(*rows, *cols)));
        (out.len() <= MAX_LEN).then_some(out)
    }

    /// Reads a payload; `None` if it is none.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut this = Self::default();
        for field in Fields(payload) {
            let (tag, bytes) = field?;
            if tag != TERMINAL && bytes.contains(&0) {
                return None;
            }
            match tag {
                ARG => this.args.push(bytes.into()),
                ENV => this.env.push(bytes.into()),
                FOLDER => this.folder = Some(bytes.into()),
                USER => this.user = Some(bytes.into()),
                TERMINAL => this.terminal = Some(parse_size(bytes)?),
                _ => return None,
            }
        }
        Some(this)
    }
}

/// What makes a machine another one than that of the snapshot it came from. Each part is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The host's name, at most 64 bytes (uname(2)).
    pub host_name: Option<Vec<u8>>,
    /// The contents of /etc/machine-id without the end of its line, 32 hexadecimal digits (machine-id(5)).
    pub machine_id: Option<Vec<u8>>,
    /// A seed for the kernel's random numbers, at most 256 bytes, which count in full.
    pub seed: Option<Vec<u8>>,
    /// For network cards: the address that a card has, and its new one.
    pub macs: Vec<([u8; 6], [u8; 6])>,
    /// The time, in nanoseconds since 1970.
    pub time_ns: Option<u64>,
}

const HOST_NAME: u8 = 1;
const MACHINE_ID: u8 = 2;
const SEED: u8 = 3;
const MAC: u8 = 4;
const TIME: u8 = 5;

impl Identity {
    /// The payload; `None` if it is longer than a frame's.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.host_name.iter().for_each(|name| put(&mut out, HOST_NAME, name));
        self.machine_id.iter().for_each(|id| put(&mut out, MACHINE_ID, id));
        self.seed.iter().for_each(|seed| put(&mut out, SEED, seed));
        self.macs.iter().for_each(|(old, new)| put(&mut out, MAC, &[*old, *new].concat()));
        self.time_ns.iter().for_each(|time| put(&mut out, TIME, &time.to_le_bytes()));
        (out.len() <= MAX_LEN).then_some(out)
    }

    /// Reads a payload; `None` if it is none.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut this = Self::default();
        for field in Fields(payload) {
            let (tag, bytes) = field?;
            match tag {
                HOST_NAME if bytes.len() <= 64 => this.host_name = Some(bytes.into()),
                MACHINE_ID if bytes.len() == 32 && bytes.iter().all(u8::is_ascii_hexdigit) => {
                    this.machine_id = Some(bytes.into());
                }
                SEED if bytes.len() <= 256 => this.seed = Some(bytes.into()),
                MAC => {
                    let (old, new) = bytes.split_first_chunk()?;
                    this.macs.push((*old, new.try_into().ok()?));
                }
                TIME => this.time_ns = Some(u64::from_le_bytes(bytes.try_into().ok()?)),
                _ => return None,
            }
        }
        Some(this)
    }
}

//! The host's random numbers.

use anyhow::{Context, Result};
use rustix::rand::{GetRandomFlags, getrandom};

/// Random bytes, at most 256, which getrandom(2) returns in one call.
pub fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("the host has no random bytes")?;
    Ok(bytes)
}

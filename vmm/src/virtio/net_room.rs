//! The buffers in which a network card receives.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};

use super::queue::Chain;
use crate::memory::buffers::Held;

/// Most chains: as many as the queue has.
const MOST: usize = 256;

/// Buffers that the driver has given for what comes.
#[derive(Default)]
pub(super) struct Room {
    pub buffers: Option<Held>,
    /// The first descriptor of each chain, and its bytes.
    pub chains: VecDeque<(u16, usize)>,
}

impl Room {
    /// Bytes of all.
    pub fn len(&self) -> usize {
        self.buffers.as_ref().map_or(0, |held| held.buffers().len())
    }

    /// Adds the buffers of `chain`.
    pub fn add(&mut self, chain: &mut Chain) -> Result<()> {
        let len = chain.writable.len();
        // A driver that offers a chain again while it is here could have any number of them.
        ensure!(len > 0 && self.chains.len() < MOST, "no room in a buffer to receive");
        let held = Held::new(std::mem::take(&mut chain.writable), chain.ram);
        let held = held.context("a buffer that leaves RAM")?;
        match &mut self.buffers {
            Some(buffers) => buffers.append(held),
            None => self.buffers = Some(held),
        }
        self.chains.push_back((chain.head, len));
        Ok(())
    }

    /// How many chains the first `len` bytes are in.
    pub fn chains_of(&self, len: usize) -> u16 {
        let mut filled = 0;
        let in_use = self.chains.iter().take_while(|(_, size)| {
            filled += size;
            filled - size < len
        });
        in_use.count() as u16
    }

    /// Takes the chains that the first `len` bytes are in; returns how much of each they fill.
    pub fn take(&mut self, len: usize) -> Vec<(u16, u32)> {
        let (mut taken, mut filled) = (Vec::new(), 0);
        while filled < len
            && let Some((head, size)) = self.chains.pop_front()
        {
            taken.push((head, size.min(len - filled) as u32));
            filled += size;
        }
        if let Some(held) = &mut self.buffers {
            held.advance(filled);
        }
        taken
    }
}

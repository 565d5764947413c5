//! virtio-rng: the host's random numbers (virtio 1.2, 5.4).

use anyhow::{Context, Result};
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::VirtioDevice;
use super::queue::Virtqueue;

/// Most bytes a request gets: a driver asks again, and none can keep us busy.
const MOST: usize = 4096;

/// The device.
pub struct Rng;

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        queues[index].serve_each(|chain| {
            let mut bytes = [0; MOST];
            let len = chain.writable.len().min(MOST);
            let filled = retry_on_intr(|| getrandom(&mut bytes[..len], GetRandomFlags::empty()));
            let filled = filled.context("the host has no random bytes")?;
            Ok(chain.writable.copy_from(&bytes[..filled]) as u32)
        })
    }
}

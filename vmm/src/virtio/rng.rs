//! virtio-rng: the host's random numbers (virtio 1.2, 5.4).

use std::time::Instant;

use anyhow::{Context, Result};
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::VirtioDevice;
use super::queue::{Served, Virtqueue};
use crate::rate::Limiter;

/// Most bytes of a request: a driver repeats it, and no request takes long.
const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    /// The limits of bytes and requests.
    pub limiter: Option<Limiter>,
}

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
        queues[index].serve_some(|chain| {
            let mut bytes = [0; MAX_BYTES];
            let len = chain.writable.len().min(MAX_BYTES);
            if let Some(limiter) = &mut self.limiter
                && !limiter.admit(len as u64, Instant::now())
            {
                return Ok(Served::Stays);
            }
            let filled = retry_on_intr(|| getrandom(&mut bytes[..len], GetRandomFlags::empty()));
            let filled = filled.context("the host has no random bytes")?;
            Ok(Served::Done(chain.writable.copy_from(&bytes[..filled]) as u32))
        })
    }

    fn resume_at(&mut self) -> Option<Instant> {
        self.limiter.as_mut()?.resume_at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bucket, RateLimit};
    use crate::virtio::test_driver::{DATA, Driver};

    #[test]
    fn its_bytes_are_limited() {
        let bucket = Bucket { size: 100, one_time_burst: Some(64), refill_time: 1 << 40 };
        let limit = RateLimit { bandwidth: Some(bucket), ops: None };
        let mut driver =
            Driver::new(Box::new(Rng { limiter: Limiter::new(&limit, Instant::now()) }));
        driver.init();
        for _ in 0..4 {
            driver.add(0, &[(DATA, 64, true)]);
        }
        driver.kick(0);
        driver.wait_used(0);
        driver.wait_used(0);
        driver.paused(|_| {});
        assert_eq!(driver.unanswered(0), 2, "64 and 100 bytes are two requests of 64");
    }
}

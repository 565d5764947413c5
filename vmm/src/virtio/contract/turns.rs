//! A queue cannot take all of a device's time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use vm_memory::{Bytes, GuestAddress};

use super::in_time;
use crate::memory::GuestRam;
use crate::virtio::VirtioDevice;
use crate::virtio::queue::Virtqueue;
use crate::virtio::test_driver::{DATA, Driver, rings};

/// Each response in queue 0 is followed by the next request at once, as from a very fast driver.
struct Endless(Arc<OnceLock<GuestRam>>);

impl VirtioDevice for Endless {
    fn id(&self) -> u32 {
        1
    }

    fn name(&self) -> &str {
        "endless"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![4; 3]
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        queues[index].serve_each(|_| {
            if let (0, Some(ram)) = (index, self.0.get()) {
                let available = GuestAddress(rings(0)[1] + 2);
                let last: u16 = ram.load(available, Ordering::SeqCst)?;
                ram.store(last.wrapping_add(1), available, Ordering::SeqCst)?;
            }
            Ok(0)
        })
    }
}

#[test]
fn a_queue_that_never_runs_empty_keeps_nobody_from_being_served_or_stopped() {
    in_time("endless", || {
        let ram = Arc::new(OnceLock::new());
        let mut driver = Driver::new(Box::new(Endless(ram.clone())));
        ram.set(driver.ram.clone()).unwrap();
        driver.init();
        for queue in [0, 2, 1, 2] {
            driver.add(queue, &[(DATA, 1, true)]);
            driver.kick(queue);
            driver.wait_used(queue);
        }
        driver.paused(|_| {});
        let before = driver.used_index(0);
        driver.wait_until("queue 0 to go on", |driver| driver.used_index(0) != before);
        driver.reset();
    });
}

/// A device that takes longer for a request than a turn lasts.
struct Slow;

impl VirtioDevice for Slow {
    fn id(&self) -> u32 {
        1
    }

    fn name(&self) -> &str {
        "slow"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        queues[index].serve_each(|_| {
            thread::sleep(Duration::from_millis(11));
            Ok(0)
        })
    }
}

#[test]
fn what_is_left_at_the_end_of_a_turn_is_served_in_the_next() {
    let mut driver = Driver::new(Box::new(Slow));
    driver.init();
    driver.paused(|driver| (0..8).for_each(|_| _ = driver.add(0, &[(DATA, 1, true)])));
    (0..8).for_each(|_| _ = driver.wait_used(0));
}

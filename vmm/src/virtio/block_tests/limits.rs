//! A disk with a limit.

use std::time::Instant;

use vmm_sys_util::metric::Metric;

use super::*;
use crate::config::{Bucket, RateLimit};
use crate::rate::Limiter;
use crate::virtio::test_driver::CONFIG_CHANGE;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION};

/// Longer than any test.
const NEVER: u64 = 1 << 40;

fn limiter(size: u64, refill_time: u64, of_bytes: bool) -> Option<Limiter> {
    let bucket = Some(Bucket { size, one_time_burst: None, refill_time });
    let limit = match of_bytes {
        true => RateLimit { bandwidth: bucket, ops: None },
        false => RateLimit { bandwidth: None, ops: bucket },
    };
    Limiter::new(&limit, Instant::now())
}

impl Disk {
    fn change(&mut self, change: impl FnOnce(&mut Block)) {
        self.driver.paused(|driver| {
            let change = |block: &mut Block| {
                change(block);
                Ok(())
            };
            driver.mmio.transport.change(change).unwrap();
        });
    }

    /// Requests a sector `count` times.
    fn asks_for(&mut self, count: usize) {
        for _ in 0..count {
            let header = DATA;
            self.driver.write(header, &super::header(VIRTIO_BLK_T_IN, 0));
            self.driver.add(
                0,
                &[(header, 16, false), (DATA + 0x1000, 512, true), (DATA + 0x2000, 1, true)],
            );
        }
        self.driver.kick(0);
    }

    /// The number of responses after the thread has stopped and finished what it had begun.
    fn answered(&mut self) -> u16 {
        self.change(|_| {});
        self.driver.used_index(0)
    }
}

#[test]
fn a_disk_answers_as_many_requests_as_it_may_and_the_rest_once_it_may() {
    for (of_bytes, size) in [(false, 3), (true, 3 * 512)] {
        let mut disk = Disk::new();
        disk.change(move |block| block.limiter = limiter(size, NEVER, of_bytes));
        disk.asks_for(5);
        for _ in 0..3 {
            disk.driver.wait_used(0);
        }
        assert_eq!(disk.answered(), 3);
        assert_eq!(disk.driver.unanswered(0), 2);
        // A disk can be reset while requests wait.
        disk.change(|block| {
            assert!(block.counts().throttled.count() > 0);
            block.limiter = None;
        });
        disk.driver.wait_used(0);
        disk.driver.wait_used(0);
        disk.driver.reset();
    }
}

#[test]
fn a_disk_goes_on_by_itself_when_its_bucket_fills() {
    let mut disk = Disk::new();
    disk.change(|block| block.limiter = limiter(1, 1, false));
    disk.asks_for(20);
    for _ in 0..20 {
        disk.driver.wait_used(0);
    }
}

#[test]
fn a_disk_that_waits_is_stopped_and_reset_at_once() {
    let mut disk = Disk::new();
    disk.change(|block| block.limiter = limiter(1, NEVER, false));
    disk.asks_for(2);
    disk.driver.wait_used(0);
    disk.driver.reset();
    disk.driver.init();
    disk.asks_for(1);
    assert_eq!(disk.answered(), 0, "a driver that resets it does not fill its bucket");
    disk.change(|block| block.limiter = None);
    disk.driver.wait_used(0);
}

#[test]
fn another_image_is_seen_by_the_driver() {
    let mut disk = Disk::new();
    let capacity = |disk: &mut Disk| disk.driver.get(VIRTIO_MMIO_CONFIG);
    let generation = disk.driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(u64::from(capacity(&mut disk)), SECTORS);
    let file = TempFile::new().unwrap();
    let contents = pattern(LEN / 2, 99);
    std::fs::write(file.as_path(), &contents).unwrap();
    let image = disk_image::open(&DiskConfig::new(file.as_path().into())).unwrap();
    disk.change(|block| block.set_image(image));
    assert_eq!(u64::from(capacity(&mut disk)), SECTORS / 2);
    assert_ne!(disk.driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(disk.driver.interrupt_status() & CONFIG_CHANGE, CONFIG_CHANGE);
    assert_eq!(disk.read(1, 512), (0, contents[512..1024].to_vec()));
    // Requests beyond the new size are refused.
    assert_ne!(disk.read(SECTORS - 1, 512).0, 0);
    // A change without an effect raises no interrupt.
    disk.driver.acknowledge(CONFIG_CHANGE);
    disk.change(|block| block.limiter = None);
    assert_eq!(disk.driver.interrupt_status() & CONFIG_CHANGE, 0);
}

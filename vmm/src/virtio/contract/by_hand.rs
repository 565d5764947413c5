//! Rings, chains and registers without threads and files: what miri can run (scripts/miri).

use super::DEVICE_CASES;
use crate::virtio::VirtioDevice;
use crate::virtio::queue::Virtqueue;
use crate::virtio::test_driver::{DATA, Driver, INDIRECT, NEXT, RAM_SIZE, WRITE, rings};

/// A device that responds with the request's bytes, backwards.
struct Mirror;

impl VirtioDevice for Mirror {
    fn id(&self) -> u32 {
        63
    }

    fn name(&self) -> &str {
        "mirror"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> anyhow::Result<()> {
        queues[index].serve_each(|chain| {
            let mut bytes = vec![0; chain.readable.len()];
            chain.readable.take(usize::MAX).copy_to(&mut bytes);
            bytes.reverse();
            Ok(chain.writable.copy_from(&bytes) as u32)
        })
    }
}

#[test]
fn requests_are_answered_whatever_pieces_they_are_in() {
    let mut driver = Driver::new(Box::new(Mirror)).by_hand();
    driver.init();
    assert_eq!(driver.request(0, b"abcdef", 4), (b"fedc".into(), 4));
    driver.write(DATA, b"abcdef");
    let pieces =
        [(DATA, 1, false), (DATA + 1, 5, false), (DATA + 64, 2, true), (DATA + 96, 9, true)];
    for add in [Driver::add, Driver::add_indirect] {
        driver.write(DATA + 64, &[0; 64]);
        add(&mut driver, 0, &pieces);
        driver.kick(0);
        assert_eq!(driver.wait_used(0).1, 6);
        assert_eq!(
            (driver.read(DATA + 64, 3), driver.read(DATA + 96, 5)),
            (b"fe\0".into(), b"dcba\0".into())
        );
    }
}

#[test]
fn chains_that_cannot_be_followed_need_a_reset() {
    let table = rings(0)[0];
    let chains: [(u64, u32, u16, u16); 5] = [
        (DATA, 8, WRITE | NEXT, 0),
        (DATA, 8, WRITE | NEXT, 99),
        (RAM_SIZE - 4, 8, WRITE, 0),
        (u64::MAX - 4, 8, 0, 0),
        (table, 16, INDIRECT, 0),
    ];
    let mut driver = Driver::new(Box::new(Mirror)).by_hand();
    for (address, len, flags, next) in chains {
        driver.init();
        driver.set_desc(table, 0, address, len, flags, next);
        driver.offer(0, 0);
        driver.kick(0);
        driver.wait_needs_reset();
    }
    driver.init();
    assert_eq!(driver.request(0, b"abc", 3), (b"cba".into(), 3));
}

#[test]
#[cfg_attr(miri, ignore = "disks are files, which miri cannot open as they are")]
fn each_device_works_without_a_thread() {
    for case in &DEVICE_CASES {
        let mut driver = Driver::new((case.make)()).by_hand();
        driver.init();
        case.works(&mut driver);
    }
}

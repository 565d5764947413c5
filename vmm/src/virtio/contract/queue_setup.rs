//! Queues that are set up wrongly, one field at a time.

use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW,
};

use super::for_each_device;
use crate::layout;
use crate::virtio::test_driver::{Driver, HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE};

const ADDRESSES: [u32; 3] =
    [VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_USED_LOW];

/// Addresses at which no ring can be.
const NOT_RAM: [u64; 7] = [
    RAM_SIZE,
    RAM_SIZE - 16,                 // overlaps the end
    HIGH_RAM - 16,                 // starts in the gap
    HIGH_RAM + HIGH_RAM_SIZE - 16, // overlaps the end of all RAM
    layout::VIRTIO_MMIO,           // is a register window
    1 << 63,
    u64::MAX - 15, // wraps
];

/// Sets up all queues; `change` alters queue 0 before it is made ready.
fn set_up_with(driver: &mut Driver, change: impl FnOnce(&mut Driver)) {
    driver.start_setup();
    let features = driver.offered_features();
    assert!(driver.accept_features(features));
    (1..driver.queue_count()).for_each(|queue| driver.set_up_queue(queue));
    driver.describe_queue(0);
    change(driver);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.driver_ok();
}

#[test]
fn a_size_that_no_queue_can_have_is_not_taken() {
    for_each_device(|case, driver| {
        let max = driver.queue_max(driver.main);
        for size in [0, 3, max - 1, max + 1, max * 2, 0x1_0000, 0x1_0000 + max, u32::MAX] {
            set_up_with(driver, |driver| driver.set(VIRTIO_MMIO_QUEUE_NUM, size));
            case.works(driver);
        }
    });
}

#[test]
fn the_smallest_queue_works() {
    for_each_device(|_, driver| {
        set_up_with(driver, |driver| driver.set(VIRTIO_MMIO_QUEUE_NUM, 1));
        // One descriptor is no complete request, but it is read: descriptor 0 is empty.
        driver.offer(driver.main, 0);
        driver.kick(driver.main);
        driver.wait_until("an answer", |driver| {
            driver.used_index(driver.main) == 1 || driver.interrupt_status() != 0
        });
    });
}

#[test]
fn rings_outside_ram_need_a_reset() {
    for_each_device(|_, driver| {
        for register in ADDRESSES {
            for address in NOT_RAM {
                set_up_with(driver, |driver| driver.set_address(register, address));
                driver.wait_needs_reset();
            }
        }
    });
}

#[test]
fn unaligned_addresses_are_not_taken() {
    for_each_device(|case, driver| {
        for register in ADDRESSES {
            for low in [1, 0xffff_ffff] {
                // The address is still zero, or the driver's last value.
                set_up_with(driver, |driver| driver.set(register, low));
                case.works(driver);
            }
        }
    });
}

#[test]
fn rings_at_address_zero_or_on_top_of_each_other_harm_only_the_guest() {
    for_each_device(|case, driver| {
        for address in [0, 0x1000, 0x2000] {
            for register in ADDRESSES {
                set_up_with(driver, |driver| driver.set_address(register, address));
                // The result depends on the rings' contents, and harms only the guest.
                case.add(driver, case.main);
                driver.kick(driver.main);
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn only_one_makes_a_queue_ready_and_only_zero_takes_it_back() {
    for_each_device(|case, driver| {
        for value in [2, 3, 0x8000_0001, u32::MAX] {
            set_up_with(driver, |driver| {
                driver.set(VIRTIO_MMIO_QUEUE_READY, value);
                assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "{value:#x}");
                driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
                driver.set(VIRTIO_MMIO_QUEUE_READY, value);
                assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1, "{value:#x} on a ready queue");
            });
            case.works(driver);
        }
    });
}

#[test]
fn a_ready_queue_does_not_change() {
    for_each_device(|case, driver| {
        set_up_with(driver, |driver| {
            driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
            driver.set(VIRTIO_MMIO_QUEUE_NUM, 2);
            ADDRESSES.into_iter().for_each(|register| driver.set_address(register, u64::MAX));
        });
        case.works(driver);
    });
}

#[test]
fn a_queue_that_is_not_ready_is_never_looked_at() {
    for_each_device(|case, driver| {
        driver.start_setup();
        let features = driver.offered_features();
        assert!(driver.accept_features(features));
        driver.describe_queue(driver.main);
        driver.driver_ok();
        case.add(driver, case.main);
        for _ in 0..100 {
            driver.kick(driver.main);
        }
        thread::sleep(Duration::from_millis(5));
        driver.set(VIRTIO_MMIO_QUEUE_SEL, driver.main as u32);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.kick(driver.main);
        thread::sleep(Duration::from_millis(5));
        assert_eq!((driver.used_index(driver.main), driver.interrupt_status()), (0, 0));
    });
}

#[test]
fn a_queue_that_is_taken_back_is_not_served_any_more_and_the_others_are() {
    for_each_device(|case, driver| {
        for queue in 0..driver.queue_count() {
            driver.init();
            (0..64).for_each(|_| _ = case.add(driver, queue));
            driver.kick(queue);
            driver.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
            let answered = driver.used_index(queue);
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
            driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "only a reset brings it back");
            case.add(driver, queue);
            driver.kick(queue);
            for other in case.prompt(driver).filter(|other| *other != queue) {
                driver.request(other, case.request, case.room);
            }
            thread::sleep(Duration::from_millis(5));
            assert_eq!(driver.used_index(queue), answered, "queue {queue}");
        }
    });
}

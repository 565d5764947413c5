//! Any access to any register, in any state of the device.

use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::for_each_device;
use crate::bus::BusDevice;
use crate::layout::VIRTIO_MMIO_SIZE;
use crate::virtio::test_driver::Driver;

/// Functions that bring a device after power-on to each possible status.
const STATES: [fn(&mut Driver); 7] = [
    Driver::reset,
    |driver| {
        driver.reset();
        driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    },
    Driver::start_setup,
    |driver| {
        driver.start_setup();
        let features = driver.offered_features();
        assert!(driver.accept_features(features));
    },
    Driver::init,
    |driver| {
        driver.init();
        driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FAILED);
        assert_ne!(driver.status() & VIRTIO_CONFIG_S_FAILED, 0);
    },
    |driver| {
        driver.init();
        driver.set_avail_index(driver.main, 0x8000);
        driver.kick(driver.main);
        driver.wait_needs_reset();
    },
];

const VALUES: [u64; 6] = [0, 1, 2, 0x80, 0x7fff_ffff_ffff_fff0, u64::MAX];

#[test]
fn any_access_at_any_status_is_survived() {
    for_each_device(|_, driver| {
        for enter in STATES {
            enter(driver);
            let status = driver.status();
            for offset in (0..0x200).chain(VIRTIO_MMIO_SIZE - 16..VIRTIO_MMIO_SIZE) {
                for width in [1, 2, 4, 8] {
                    driver.mmio.read(offset, &mut [0xff; 8][..width]);
                    for value in VALUES {
                        driver.mmio.write(offset, &value.to_le_bytes()[..width]);
                        // A write to the status register may have reset the device.
                        if driver.status() != status {
                            enter(driver);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn registers_are_written_in_whole_words_and_the_configuration_is_bytes() {
    for_each_device(|_, driver| {
        assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
        for width in [1, 2, 8] {
            driver.mmio.write(VIRTIO_MMIO_STATUS.into(), &[1; 8][..width]);
            assert_eq!(driver.status(), 0);
        }
        let mut whole = [0; 8];
        driver.mmio.read(VIRTIO_MMIO_CONFIG.into(), &mut whole);
        for (offset, expected) in (u64::from(VIRTIO_MMIO_CONFIG)..).zip(whole) {
            let mut byte = [0xff];
            driver.mmio.write(offset, &[!expected]);
            driver.mmio.read(offset, &mut byte);
            assert_eq!(byte, [expected], "read only, at {offset:#x}");
        }
    });
}

#[test]
fn what_is_written_after_driver_ok_has_no_effect() {
    for_each_device(|case, driver| {
        driver.init();
        let kept = [VIRTIO_MMIO_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_INTERRUPT_ACK];
        for queue in 0..driver.queue_count() {
            for register in (0..VIRTIO_MMIO_CONFIG).step_by(4).filter(|r| !kept.contains(r)) {
                // Zero takes a queue back.
                let is_zero = |value: u64| register == VIRTIO_MMIO_QUEUE_READY && value as u32 == 0;
                for value in VALUES.into_iter().filter(|value| !is_zero(*value)) {
                    driver.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
                    driver.set(register, value as u32);
                }
            }
            driver.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
        }
        driver.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        assert_ne!(driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0, "only a reset clears bits");
        case.works(driver);
    });
}

#[test]
fn features_that_were_not_offered_or_are_too_old_are_refused() {
    for_each_device(|_, driver| {
        driver.start_setup();
        let offered = driver.offered_features();
        let refused = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0);
        for features in refused.map(|bit| offered | bit).chain([
            0,
            u64::MAX,
            offered & !(1 << VIRTIO_F_VERSION_1),
        ]) {
            assert!(!driver.accept_features(features), "{features:#x}");
        }
        assert!(driver.accept_features(offered), "a driver may try again");
        for (word, accepted) in [(2, false), (u32::MAX, false), (2, true)] {
            driver.start_setup();
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, u32::from(!accepted));
            assert_eq!(driver.accept_features(offered), accepted, "bit 0 of word {word}");
        }
    });
}

#[test]
fn there_is_no_shared_memory() {
    for_each_device(|_, driver| {
        for region in [0, 1, u32::MAX] {
            driver.set(VIRTIO_MMIO_SHM_SEL, region);
            for register in (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
                assert_eq!(driver.get(register), u32::MAX, "{register:#x} of region {region}");
            }
        }
    });
}

#[test]
fn features_are_fixed_once_they_are_ok() {
    for_each_device(|case, driver| {
        driver.start_setup();
        let offered = driver.offered_features();
        assert!(driver.accept_features(offered & !(1 << VIRTIO_RING_F_EVENT_IDX)));
        assert!(driver.accept_features(offered), "too late, but that is no error");
        (0..driver.queue_count()).for_each(|queue| driver.set_up_queue(queue));
        driver.driver_ok();
        for _ in 0..3 {
            case.add(driver, case.main);
            driver.kick(driver.main);
            // EVENT_IDX would leave out all but the first.
            driver.wait_until("an interrupt", |driver| driver.take_interrupt());
            driver.wait_used(driver.main);
        }
    });
}

#[test]
fn status_bits_are_only_taken_in_their_order() {
    for_each_device(|case, driver| {
        for status in
            [VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER]
        {
            driver.set(VIRTIO_MMIO_STATUS, status);
            assert_eq!(driver.status(), 0, "{status:#x} before ACKNOWLEDGE");
        }
        driver.start_setup();
        driver.driver_ok();
        assert_eq!(
            driver.status(),
            VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER,
            "DRIVER_OK before FEATURES_OK"
        );
        // Queues do not exist before FEATURES_OK, so this one never runs.
        driver.describe_queue(driver.main);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        case.add(driver, case.main);
        driver.kick(driver.main);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(driver.used_index(driver.main), 0);
    });
}

#[test]
fn queue_registers_beyond_the_last_queue_lead_nowhere() {
    for_each_device(|case, driver| {
        driver.start_setup();
        let features = driver.offered_features();
        assert!(driver.accept_features(features));
        for queue in [driver.queue_count(), 0x1_0000, u32::MAX as usize] {
            assert_eq!(driver.queue_max(queue), 0);
            for register in (VIRTIO_MMIO_QUEUE_NUM..=VIRTIO_MMIO_QUEUE_USED_HIGH).step_by(4) {
                driver.set(register, 1);
            }
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        }
        (0..driver.queue_count()).for_each(|queue| driver.set_up_queue(queue));
        driver.driver_ok();
        case.works(driver);
    });
}

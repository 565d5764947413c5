//! Resets, pauses, kicks and interrupts at any time.

use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;

use super::{DEVICE_CASES, for_each_device, in_time};
use crate::virtio::test_driver::rings;

/// Requests in flight: as many as all queues of all devices can hold.
const MANY: u16 = 20;

#[test]
fn nothing_is_answered_after_a_reset() {
    for_each_device(|case, driver| {
        for round in 0..30 {
            driver.init();
            (0..MANY).for_each(|_| _ = case.add(driver, case.main));
            driver.kick(driver.main);
            // At another time in each round: before, while and after the requests are served.
            thread::sleep(Duration::from_micros(round * 20));
            driver.reset();
            let [_, _, used, _] = rings(driver.main);
            let after = driver.read(used, 0x1000);
            driver.kick(driver.main);
            thread::sleep(Duration::from_micros(500));
            assert_eq!(driver.read(used, 0x1000), after);
            assert_eq!((driver.interrupt_status(), driver.take_interrupt()), (0, false));
        }
    });
}

#[test]
fn resets_can_follow_each_other_in_any_state() {
    for_each_device(|case, driver| {
        driver.reset();
        driver.reset();
        driver.init();
        driver.reset();
        driver.reset();
        driver.init();
        case.works(driver);
        driver.mmio.transport.pause();
        driver.reset();
        driver.mmio.transport.resume().unwrap();
        assert_eq!(driver.status(), 0);
        let used = driver.used_index(driver.main);
        case.add(driver, case.main);
        driver.kick(driver.main);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(driver.used_index(driver.main), used, "the reset ended the pause too");
        driver.init();
        case.works(driver);
    });
}

/// As when a guest resets the machine, which builds its devices anew.
#[test]
fn nothing_is_left_of_a_device_that_its_driver_was_using() {
    for case in &DEVICE_CASES {
        in_time(case.name, move || {
            let mut driver = case.driver();
            driver.init();
            case.works(&mut driver);
            let pages = driver.pages.clone();
            drop(driver);
            assert_eq!(pages.strong_count(), 0, "{}", case.name);
        });
    }
}

#[test]
fn a_storm_of_kicks_is_survived() {
    for_each_device(|case, driver| {
        for _ in 0..1000 {
            driver.kick(driver.main);
        }
        driver.init();
        for round in 0..3000 {
            driver.kick(round % driver.queue_count());
            driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, driver.queue_count() as u32);
            driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
        }
        assert_eq!(driver.used_index(driver.main), 0);
        case.works(driver);
    });
}

#[test]
fn requests_survive_pauses_and_are_answered_once() {
    for_each_device(|case, driver| {
        driver.init();
        for round in 0..20 {
            let mut heads: Vec<_> = (0..MANY).map(|_| case.add(driver, case.main)).collect();
            driver.kick(driver.main);
            thread::sleep(Duration::from_micros(round * 20));
            driver.paused(|driver| {
                let used = driver.used_index(driver.main);
                heads.push(case.add(driver, case.main));
                driver.kick(driver.main);
                thread::sleep(Duration::from_micros(500));
                assert_eq!(driver.used_index(driver.main), used, "nothing runs in a pause");
            });
            let answered: Vec<_> = heads.iter().map(|_| driver.wait_used(driver.main).0).collect();
            assert_eq!(answered, heads);
        }
        thread::sleep(Duration::from_millis(2));
        assert_eq!(driver.used_index(driver.main), 20 * (MANY + 1));
    });
}

#[test]
fn pause_and_resume_do_nothing_to_a_device_that_does_not_run() {
    for_each_device(|case, driver| {
        driver.mmio.transport.resume().unwrap();
        driver.paused(|driver| driver.mmio.transport.pause());
        driver.init();
        driver.paused(|driver| driver.mmio.transport.pause());
        driver.mmio.transport.resume().unwrap();
        case.works(driver);
    });
}

#[test]
fn ring_indices_wrap() {
    for_each_device(|case, driver| {
        driver.init();
        let mut answered = 0;
        while answered < 0x1_0000 + 100 {
            (0..MANY).for_each(|_| _ = case.add(driver, case.main));
            driver.kick(driver.main);
            (0..MANY).for_each(|_| _ = driver.wait_used(driver.main));
            answered += u32::from(MANY);
        }
    });
}

#[test]
fn requests_that_come_before_driver_ok_are_served() {
    for_each_device(|case, driver| {
        driver.start_setup();
        let features = driver.offered_features();
        assert!(driver.accept_features(features));
        (0..driver.queue_count()).for_each(|queue| driver.set_up_queue(queue));
        case.add(driver, case.main);
        driver.driver_ok();
        driver.wait_used(driver.main);
    });
}

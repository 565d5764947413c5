//! Interrupts and kicks are suppressed as negotiated, and none is lost.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::for_each_device;
use crate::virtio::test_driver::USED_BUFFER;

const MANY: u16 = 20;

#[test]
fn every_answer_interrupts_a_driver_without_event_idx() {
    for_each_device(|case, driver| {
        let features = driver.offered_features() & !(1 << VIRTIO_RING_F_EVENT_IDX);
        driver.init_with(features);
        for _ in 0..100 {
            case.add(driver, case.main);
            driver.kick(driver.main);
            driver.wait_until("an interrupt", |driver| driver.take_interrupt());
            assert_eq!(driver.interrupt_status(), USED_BUFFER);
            driver.acknowledge(USED_BUFFER);
            assert_eq!(driver.interrupt_status(), 0);
            driver.wait_used(driver.main);
        }
    });
}

#[test]
fn a_driver_without_event_idx_can_do_without_interrupts() {
    for_each_device(|case, driver| {
        let features = driver.offered_features() & !(1 << VIRTIO_RING_F_EVENT_IDX);
        driver.init_with(features);
        for wanted in [false, true, false] {
            driver.want_interrupts(driver.main, wanted);
            for _ in 0..20 {
                case.add(driver, case.main);
                driver.kick(driver.main);
                driver.wait_used(driver.main);
            }
            driver.paused(|_| {}); // all interrupts for completed requests are raised by then
            assert_eq!(driver.take_interrupt(), wanted);
            let status = if wanted { USED_BUFFER } else { 0 };
            assert_eq!(driver.interrupt_status(), status);
            driver.acknowledge(USED_BUFFER);
        }
    });
}

#[test]
fn event_idx_delays_the_interrupt_to_the_answer_that_the_driver_names() {
    for_each_device(|case, driver| {
        driver.init();
        for batch in 1..20 {
            driver.set_used_event(driver.main, batch * MANY - 1);
            for _ in 1..MANY {
                case.add(driver, case.main);
                driver.kick(driver.main);
                driver.wait_used(driver.main);
            }
            assert!(!driver.take_interrupt(), "all but one are answered");
            case.add(driver, case.main);
            driver.kick(driver.main);
            driver.wait_until("an interrupt", |driver| driver.take_interrupt());
            driver.wait_used(driver.main);
        }
    });
}

#[test]
fn a_driver_that_kicks_only_when_asked_to_is_always_answered() {
    for_each_device(|case, driver| {
        let all = driver.offered_features();
        for features in [all, all & !(1 << VIRTIO_RING_F_EVENT_IDX)] {
            driver.init_with(features);
            for round in 0..3000u32 {
                case.add(driver, case.main);
                if driver.wants_kick(driver.main) {
                    driver.kick(driver.main);
                }
                // With a request or two in flight, new ones arrive just as the device begins to wait.
                if round.is_multiple_of(3) {
                    driver.wait_used(driver.main);
                }
                while driver.unanswered(driver.main) > 2 {
                    driver.wait_used(driver.main);
                }
            }
        }
    });
}

//! Pages that the guest names as free when it is asked to.

use super::*;
use crate::config::BalloonFeatures;

/// Where it is offered; reports are one further then.
const HINTING: usize = 3;
const FREE_PAGE_HINT: u64 = 1 << 3;
const HINT: u32 = VIRTIO_MMIO_CONFIG + 8;

/// A driver of a balloon that asks for hints, and what they are written to.
fn hinting() -> (Driver, BalloonHandle) {
    let features = BalloonFeatures { hinting: true, ..Default::default() };
    let balloon = Balloon::new(RAM_SIZE + HIGH_RAM_SIZE, 0, features).unwrap();
    let handle = balloon.handle();
    let mut driver = Driver::new(Box::new(balloon));
    driver.init();
    dirty(&driver);
    (driver, handle)
}

/// Says which run is followed, and names two pages of it.
fn name_pages(driver: &mut Driver, run: u32, first: u64) {
    driver.write(REQUEST, &run.to_le_bytes());
    answered(driver, HINTING, &[(REQUEST, 4, false)]);
    answered(driver, HINTING, &[(first, 2 * PAGE as u32, true)]);
}

fn says(driver: &mut Driver, command: u32) {
    driver.write(REQUEST, &command.to_le_bytes());
    answered(driver, HINTING, &[(REQUEST, 4, false)]);
}

#[test]
fn pages_are_given_back_as_long_as_they_are_of_the_run_that_was_asked_for() {
    let (mut driver, handle) = hinting();
    name_pages(&mut driver, 0, DATA);
    name_pages(&mut driver, 2, DATA);
    assert_zero(&driver, |_| false);
    driver.take_interrupt();
    handle.start_hinting(true).unwrap();
    assert!(driver.take_interrupt() && driver.interrupt_status() & CONFIG_CHANGE != 0);
    assert_eq!((driver.get(HINT), handle.hinting().guest_command), (2, Some(2)));
    name_pages(&mut driver, 3, DATA);
    assert_zero(&driver, |_| false);
    name_pages(&mut driver, 2, DATA);
    assert_zero(&driver, |at| at < DATA + 2 * PAGE);
    // All are named: the run is over, and what comes late is not given back.
    says(&mut driver, 0);
    assert_eq!((driver.get(HINT), handle.hinting().guest_command), (1, Some(0)));
    dirty(&driver);
    name_pages(&mut driver, 2, DATA);
    assert_zero(&driver, |_| false);
    // The next one has another number, and ends when it is told to.
    handle.start_hinting(false).unwrap();
    assert_eq!(driver.get(HINT), 3);
    name_pages(&mut driver, 3, DATA);
    says(&mut driver, 0);
    assert_eq!(driver.get(HINT), 3);
    handle.stop_hinting().unwrap();
    assert_eq!(driver.get(HINT), 1);
    assert_zero(&driver, |at| at < DATA + 2 * PAGE);
}

#[test]
fn pages_whose_contents_count_are_kept_when_they_are_hinted_too() {
    let (mut driver, handle) = hinting();
    driver.set(POISON, 0xaa);
    handle.start_hinting(true).unwrap();
    name_pages(&mut driver, 2, DATA);
    assert_zero(&driver, |_| false);
}

#[test]
fn a_driver_that_does_not_hint_is_not_asked() {
    let (mut driver, handle) = hinting();
    driver.reset();
    let refused = |handle: &BalloonHandle| {
        for result in [handle.start_hinting(true), handle.stop_hinting()] {
            assert!(result.unwrap_err().to_string().contains("no driver"));
        }
    };
    refused(&handle);
    let offered = driver.offered_features();
    driver.init_with(offered & !FREE_PAGE_HINT);
    refused(&handle);
    // Its queue is the one of reports then.
    dirty(&driver);
    answered(&mut driver, HINTING, &[(DATA, PAGE as u32, true)]);
    assert_zero(&driver, |at| at < DATA + PAGE);
    let (mut none, _) = balloon(0);
    assert_eq!(none.offered_features() & FREE_PAGE_HINT, 0);
}

#[test]
fn a_run_is_over_in_a_machine_that_is_made_of_a_saved_one() {
    let (mut driver, handle) = hinting();
    handle.start_hinting(false).unwrap();
    driver.acknowledge(CONFIG_CHANGE);
    driver.mmio.transport.pause();
    let state = driver.mmio.save().unwrap();
    let features = BalloonFeatures { hinting: true, ..Default::default() };
    let balloon = Balloon::new(RAM_SIZE + HIGH_RAM_SIZE, 0, features).unwrap();
    let handle = balloon.handle();
    driver.exchange(Box::new(balloon));
    driver.mmio.restore(&state).unwrap();
    driver.mmio.transport.resume().unwrap();
    assert_eq!(driver.interrupt_status(), CONFIG_CHANGE);
    assert_eq!(driver.get(HINT), 1);
    name_pages(&mut driver, 2, DATA);
    assert_zero(&driver, |_| false);
    handle.start_hinting(true).unwrap();
    assert_eq!(driver.get(HINT), 3);
}

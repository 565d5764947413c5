//! The balloon gives back the guest's pages within RAM, and nothing else.

mod hints;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION};

use super::balloon::Balloon;
use super::balloon_handle::BalloonHandle;
use super::test_driver::{Buffer, CONFIG_CHANGE, DATA, Driver, HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const STATS_VQ: u64 = 1 << 1;
const PAGE_POISON: u64 = 1 << 4;
const PAGE: u64 = 4096;
/// The address of requests, below the pages that the tests check.
const REQUEST: u64 = 0x4_0000;
/// The address of a list that is longer than any driver's.
const LIST: u64 = 0x2_0000;
const TARGET: u32 = VIRTIO_MMIO_CONFIG;
const ACTUAL: u32 = VIRTIO_MMIO_CONFIG + 4;
const POISON: u32 = VIRTIO_MMIO_CONFIG + 12;

fn balloon(target: u64) -> (Driver, BalloonHandle) {
    let balloon = Balloon::new(RAM_SIZE + HIGH_RAM_SIZE, target, Default::default()).unwrap();
    let handle = balloon.handle();
    (Driver::new(Box::new(balloon)), handle)
}

/// Fills RAM from DATA on.
fn dirty(driver: &Driver) {
    driver.write(DATA, &vec![0xaa; (RAM_SIZE - DATA) as usize]);
    driver.write(HIGH_RAM, &vec![0xaa; HIGH_RAM_SIZE as usize]);
}

/// Checks that exactly these bytes of what `dirty` filled are zero.
#[track_caller]
fn assert_zero(driver: &Driver, is_zero: impl Fn(u64) -> bool) {
    for (start, end) in [(DATA, RAM_SIZE), (HIGH_RAM, HIGH_RAM + HIGH_RAM_SIZE)] {
        let bytes = driver.read(start, (end - start) as usize);
        for (address, byte) in (start..).zip(bytes) {
            let expected = if is_zero(address) { 0 } else { 0xaa };
            assert_eq!(byte, expected, "at {address:#x}");
        }
    }
}

#[track_caller]
fn answered(driver: &mut Driver, queue: usize, buffers: &[Buffer]) {
    let head = driver.add(queue, buffers);
    driver.kick(queue);
    assert_eq!(driver.wait_used(queue), (head, 0));
}

/// Puts `pages` into the balloon, in a request of one or two pieces.
fn inflate(driver: &mut Driver, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.write(REQUEST, &bytes);
    let (len, cut) = (bytes.len() as u32, 7.min(bytes.len() as u32));
    let pieces = [(REQUEST, cut, false), (REQUEST + u64::from(cut), len - cut, false)];
    answered(driver, INFLATE, &pieces);
}

fn number(address: u64) -> u32 {
    (address / PAGE) as u32
}

#[test]
fn pages_in_the_balloon_are_given_back_and_no_others() {
    let (mut driver, _) = balloon(0);
    driver.init();
    dirty(&driver);
    let pages = [RAM_SIZE - PAGE, DATA, DATA, HIGH_RAM, HIGH_RAM + PAGE, DATA + 2 * PAGE, DATA];
    let outside = [RAM_SIZE, HIGH_RAM - PAGE, HIGH_RAM + HIGH_RAM_SIZE].map(number);
    let mut numbers: Vec<u32> = pages.map(number).to_vec();
    numbers.extend(outside.iter().chain(&[u32::MAX, u32::MAX - 1, 1 << 31]));
    inflate(&mut driver, &numbers);
    // A run that starts outside of RAM is given up where RAM is not.
    let is_zero = |at: u64| pages.contains(&(at / PAGE * PAGE)) && at < HIGH_RAM;
    assert_zero(&driver, is_zero);
    inflate(&mut driver, &[HIGH_RAM, HIGH_RAM + PAGE].map(number));
    let is_zero = |at: u64| pages.contains(&(at / PAGE * PAGE));
    assert_zero(&driver, is_zero);
    dirty(&driver);
    let numbers: Vec<u8> = pages.iter().flat_map(|page| number(*page).to_le_bytes()).collect();
    driver.write(REQUEST, &numbers);
    answered(&mut driver, DEFLATE, &[(REQUEST, numbers.len() as u32, false)]);
    assert_zero(&driver, |_| false);
}

#[test]
fn any_list_of_pages_gives_back_those_that_are_ram() {
    let page = prop_oneof![
        4 => number(DATA)..number(RAM_SIZE) + 3,
        2 => number(HIGH_RAM) - 2..number(HIGH_RAM + HIGH_RAM_SIZE) + 2,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    // Not the pages of the rings and the request.
    let page = page.prop_filter("in use", |page| *page >= number(DATA));
    let lists = proptest::collection::vec(proptest::collection::vec(page, 0..40), 1..4);
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&lists, |lists| {
        let (mut driver, _) = balloon(0);
        driver.init();
        dirty(&driver);
        lists.iter().for_each(|pages| inflate(&mut driver, pages));
        // Pages after one that is not RAM may stay.
        let after_a_hole = |list: &[u32], page: u32| {
            let before = (0..page).rev().take_while(|before| list.contains(before)).last();
            before.is_some_and(|first| first < number(HIGH_RAM)) && page >= number(HIGH_RAM)
        };
        let gone =
            |page: u32| lists.iter().any(|list| list.contains(&page) && !after_a_hole(list, page));
        for (start, end) in [(DATA, RAM_SIZE), (HIGH_RAM, HIGH_RAM + HIGH_RAM_SIZE)] {
            for page in number(start)..number(end) {
                let expected = [if gone(page) { 0 } else { 0xaa }; PAGE as usize];
                let found = driver.read(u64::from(page) * PAGE, expected.len());
                assert!(found == expected, "page {page:#x} of {lists:x?}");
            }
        }
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_list_without_end_is_answered() {
    let (mut driver, _) = balloon(0);
    driver.init();
    dirty(&driver);

    let mut list = vec![0xff; (DATA - LIST) as usize];
    for (index, page) in [(4095, number(DATA)), (4096, number(DATA + PAGE))] {
        list[index * 4..][..4].copy_from_slice(&page.to_le_bytes());
    }
    driver.write(LIST, &list);
    answered(&mut driver, INFLATE, &[(LIST, list.len() as u32, false); 60]);
    assert_zero(&driver, |at| at < DATA + PAGE);
    dirty(&driver);
    answered(&mut driver, INFLATE, &[(REQUEST, 3, false)]);
    answered(&mut driver, INFLATE, &[(DATA, 4096, true)]);
    assert_zero(&driver, |_| false);
}

#[test]
fn whole_pages_that_are_reported_are_given_back_and_parts_are_not() {
    let (mut driver, _) = balloon(0);
    driver.init();
    dirty(&driver);
    let report = [
        (DATA, 2 * PAGE as u32, true),
        (DATA + 4 * PAGE + 1, 2 * PAGE as u32, true),
        (DATA + 8 * PAGE, PAGE as u32 - 1, true),
        (RAM_SIZE - 1, 1, true),
        (HIGH_RAM, HIGH_RAM_SIZE as u32, true),
        (HIGH_RAM, HIGH_RAM_SIZE as u32, true),
    ];
    answered(&mut driver, REPORTING, &report);
    let pages = [DATA, DATA + PAGE, DATA + 5 * PAGE];
    let is_zero = |at: u64| at >= HIGH_RAM || pages.contains(&(at / PAGE * PAGE));
    assert_zero(&driver, is_zero);
    dirty(&driver);
    answered(&mut driver, REPORTING, &[(DATA, 8 * PAGE as u32, false)]);
    assert_zero(&driver, |_| false);
}

#[test]
fn a_guest_that_relies_on_what_is_in_free_pages_keeps_them() {
    for (features, poison, kept) in
        [(PAGE_POISON, 0xaa, true), (PAGE_POISON, 0, false), (0, 0xaa, false)]
    {
        let (mut driver, _) = balloon(0);
        let offered = driver.offered_features();
        driver.init_with(offered & !PAGE_POISON | features);
        driver.set(POISON, poison);
        dirty(&driver);
        answered(&mut driver, REPORTING, &[(DATA, PAGE as u32, true)]);
        assert_zero(&driver, |at| !kept && at < DATA + PAGE);
        driver.reset();
        assert_eq!(driver.get(POISON), 0);
    }
}

#[test]
fn queues_move_up_where_one_is_not_negotiated() {
    let (mut driver, handle) = balloon(0);
    let offered = driver.offered_features();
    driver.init_with(offered & !STATS_VQ);
    dirty(&driver);
    answered(&mut driver, REPORTING - 1, &[(DATA, PAGE as u32, true)]);
    assert_zero(&driver, |at| at < DATA + PAGE);
    handle.refresh_statistics();
    assert_eq!(handle.statistics(), None);
}

#[test]
fn the_target_reaches_the_driver_and_its_answer_the_owner() {
    let (mut driver, handle) = balloon(2 * PAGE);
    assert_eq!((driver.get(TARGET), handle.target()), (2, 2 * PAGE));
    handle.set_target(3 * PAGE + 1).unwrap();
    assert!(!driver.take_interrupt(), "nobody is there yet");
    driver.init();
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(driver.get(TARGET), 3);
    handle.set_target(RAM_SIZE + HIGH_RAM_SIZE).unwrap();
    assert!(driver.take_interrupt());
    assert_eq!(driver.interrupt_status(), CONFIG_CHANGE);
    assert_eq!(u64::from(driver.get(TARGET)) * PAGE, RAM_SIZE + HIGH_RAM_SIZE);
    assert_ne!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    for bytes in [RAM_SIZE + HIGH_RAM_SIZE + 1, u64::MAX] {
        let error = handle.set_target(bytes).unwrap_err().to_string();
        assert!(error.contains("the machine has 1 MiB"), "{error}");
    }
    driver.acknowledge(CONFIG_CHANGE);
    driver.set(ACTUAL, 7);
    driver.set(TARGET, 9);
    assert_eq!((driver.get(ACTUAL), handle.actual()), (7, 7 * PAGE));
    assert_eq!(handle.target(), RAM_SIZE + HIGH_RAM_SIZE, "the driver does not set it");
    driver.paused(|driver| {
        handle.set_target(PAGE).unwrap();
        assert!(driver.take_interrupt(), "also in a pause");
    });
    driver.reset();
    handle.set_target(5 * PAGE).unwrap();
    assert!(!driver.take_interrupt(), "nobody is there any more");
    driver.reset();
    assert_eq!((driver.get(TARGET), handle.actual()), (5, 0));
}

/// A driver's list of statistics.
fn statistics(entries: &[(u16, u64)]) -> Vec<u8> {
    let bytes = |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    entries.iter().flat_map(bytes).collect()
}

fn send(driver: &mut Driver, bytes: &[u8]) -> u16 {
    driver.write(REQUEST, bytes);
    let head = driver.add(STATISTICS, &[(REQUEST, bytes.len() as u32, false)]);
    driver.kick(STATISTICS);
    head
}

fn wait_for_update(driver: &mut Driver, handle: &BalloonHandle, updates: u64) {
    let is_there = |seen: u64| seen == updates;
    driver.wait_until("statistics", |_| handle.statistics().is_some_and(|s| is_there(s.updates)));
}

#[test]
fn statistics_are_kept_and_asked_for_again() {
    let (mut driver, handle) = balloon(0);
    driver.init();
    assert_eq!(handle.statistics(), None);
    // Requested before there are any: the driver's first buffer is returned at once.
    handle.refresh_statistics();
    let head = send(&mut driver, &statistics(&[(4, 1)]));
    assert_eq!(driver.wait_used(STATISTICS), (head, 0));
    send(&mut driver, &statistics(&[(4, 2000), (5, 3000), (16, 7), (u16::MAX, 7), (15, 9)]));
    wait_for_update(&mut driver, &handle, 1);
    let entries: Vec<_> = handle.statistics().unwrap().iter().collect();
    assert_eq!(entries, [(4, 2000), (5, 3000), (15, 9)]);
    for round in 2..20 {
        driver.kick(STATISTICS);
        driver.paused(|_| {});
        assert_eq!(handle.statistics().unwrap().updates, round - 1, "seen twice, counted once");
        handle.refresh_statistics();
        driver.wait_used(STATISTICS);
        send(&mut driver, &statistics(&[(4, round)]));
        wait_for_update(&mut driver, &handle, round);
        assert_eq!(handle.statistics().unwrap().iter().next(), Some((4, round)));
    }
    driver.reset();
    assert_eq!(handle.statistics(), None);
    handle.refresh_statistics();
    driver.init();
    send(&mut driver, &statistics(&[(0, 5)]));
    wait_for_update(&mut driver, &handle, 1);
}

#[test]
fn statistics_that_make_no_sense_are_survived() {
    for bytes in [vec![], vec![1; 9], vec![3; 11], vec![0xff; 0x4_0000]] {
        let (mut driver, handle) = balloon(0);
        driver.init();
        send(&mut driver, &bytes);
        wait_for_update(&mut driver, &handle, 1);
        assert_eq!(handle.statistics().unwrap().iter().count(), 0);
        handle.refresh_statistics();
        driver.wait_used(STATISTICS);
    }
}

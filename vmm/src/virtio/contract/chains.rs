//! Invalid rings and descriptor chains.

use std::thread;
use std::time::Duration;

use super::for_each_device;
use crate::virtio::test_driver::{
    DATA, Driver, HIGH_RAM, HIGH_RAM_SIZE, INDIRECT, NEXT, RAM_SIZE, WRITE, rings,
};

/// Offers descriptors 0.. of queue 0, each with address, length, flags and next.
fn offer(driver: &mut Driver, descs: &[(u64, u32, u16, u16)]) {
    let [table, ..] = rings(driver.main);
    for (index, (addr, len, flags, next)) in (0..).zip(descs.iter().copied()) {
        driver.set_desc(table, index, addr, len, flags, next);
    }
    driver.offer(driver.main, 0);
}

/// Offers a chain in an indirect table.
fn offer_indirect(driver: &mut Driver, table_len: u32, descs: &[(u64, u32, u16, u16)]) {
    let [_, _, _, table] = rings(driver.main);
    for (index, (addr, len, flags, next)) in (0..).zip(descs.iter().copied()) {
        driver.set_desc(table, index, addr, len, flags, next);
    }
    offer(driver, &[(table, table_len, INDIRECT, 0)]);
}

/// Makes a chain available.
type Offer = fn(&mut Driver);

/// Chains that no device can follow.
const BROKEN: [(&str, Offer); 19] = [
    ("loop of one", |d| offer(d, &[(DATA, 16, NEXT, 0)])),
    ("loop of two", |d| offer(d, &[(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)])),
    ("loop of nothing", |d| offer(d, &[(DATA, 0, NEXT, 0)])),
    ("loop in an indirect table", |d| offer_indirect(d, 16, &[(DATA, 1, WRITE | NEXT, 0)])),
    ("long loop in an indirect table", |d| {
        offer_indirect(d, 16 * 0xffff, &[(DATA, 1, WRITE | NEXT, 0)]);
    }),
    ("next out of range", |d| offer(d, &[(DATA, 16, NEXT, 0x7fff)])),
    ("head out of range", |d| d.offer(d.main, 0xffff)),
    ("indirect in indirect", |d| offer_indirect(d, 16, &[(DATA, 16, INDIRECT, 0)])),
    ("indirect table of no length", |d| offer_indirect(d, 0, &[])),
    ("indirect table of odd length", |d| offer_indirect(d, 15, &[(DATA, 16, WRITE, 0)])),
    ("indirect table of 4 GiB", |d| offer_indirect(d, 0xffff_fff0, &[(DATA, 16, NEXT, 0)])),
    ("indirect table in no RAM", |d| offer(d, &[(RAM_SIZE, 16, INDIRECT, 0)])),
    ("available index jumps", |d| d.set_avail_index(d.main, 0x4000)),
    ("address in no RAM", |d| offer(d, &[(RAM_SIZE, 16, WRITE, 0)])),
    ("buffer leaves RAM", |d| offer(d, &[(RAM_SIZE - 8, 16, WRITE, 0)])),
    ("buffer leaves all RAM", |d| offer(d, &[(HIGH_RAM + HIGH_RAM_SIZE - 1, 2, WRITE, 0)])),
    ("buffer wraps", |d| offer(d, &[(u64::MAX - 7, 16, WRITE, 0)])),
    ("buffer of 4 GiB", |d| offer(d, &[(DATA, u32::MAX, WRITE, 0)])),
    ("readable after writable", |d| offer(d, &[(DATA, 16, WRITE | NEXT, 1), (DATA, 16, 0, 0)])),
];

#[test]
fn a_chain_that_cannot_be_followed_needs_a_reset_and_is_not_answered() {
    for_each_device(|case, driver| {
        for (name, break_it) in BROKEN {
            driver.init();
            break_it(driver);
            driver.kick(driver.main);
            driver.wait_needs_reset();
            assert_eq!(driver.used_index(driver.main), 0, "{name}");
            // Until the reset the device serves no queue.
            let last = driver.queue_count() - 1;
            let used = driver.used_index(last);
            case.add(driver, last);
            driver.kick(last);
            thread::sleep(Duration::from_millis(2));
            assert_eq!(driver.used_index(last), used, "{name}");
        }
    });
}

#[test]
fn requests_before_a_broken_one_are_answered() {
    for_each_device(|case, driver| {
        driver.init();
        driver.paused(|driver| {
            case.add(driver, case.main);
            case.add(driver, case.main);
            driver.offer(driver.main, 0xffff);
        });
        driver.wait_needs_reset();
        assert_eq!(driver.used_index(driver.main), 2);
    });
}

#[test]
fn descriptors_of_no_length_are_answered_or_need_a_reset() {
    for_each_device(|_, driver| {
        for address in [DATA, RAM_SIZE, u64::MAX] {
            for flags in [0, WRITE] {
                driver.init();
                offer(driver, &[(address, 0, flags, 0)]);
                driver.kick(driver.main);
                driver.wait_until("any reaction", |driver| {
                    driver.used_index(driver.main) != 0 || driver.interrupt_status() != 0
                });
            }
        }
    });
}

#[test]
fn chains_may_be_indirect_as_long_as_the_queue_and_in_any_ram() {
    for_each_device(|case, driver| {
        driver.init();
        let size = driver.queue_max(driver.main) as usize;
        let data = HIGH_RAM + HIGH_RAM_SIZE - 0x1000;
        driver.write(data, case.request);
        let mut buffers: Vec<_> =
            (data..).map(|address| (address, 1, false)).take(case.request.len()).collect();
        let parts = size - buffers.len() - 1;
        buffers.extend((data + 0x100..).map(|address| (address, 1, true)).take(parts));
        let rest = case.room - parts;
        // Ends with the last byte of RAM.
        buffers.push((HIGH_RAM + HIGH_RAM_SIZE - rest as u64, rest as u32, true));
        for add in [Driver::add, Driver::add_indirect] {
            let head = add(driver, case.main, &buffers);
            driver.kick(driver.main);
            assert_eq!(driver.wait_used(driver.main), (head, case.written as u32));
        }
    });
}

#[test]
fn a_chain_longer_than_its_queue_needs_a_reset() {
    for_each_device(|_, driver| {
        driver.init();
        let size = driver.queue_max(driver.main) as usize;
        // The table has to have one entry more than the queue.
        let buffers = vec![(DATA, 1, true); size + 1];
        let table = DATA + 0x1000;
        for (index, (address, len, _)) in (0..).zip(buffers) {
            let flags = if usize::from(index) == size { WRITE } else { WRITE | NEXT };
            driver.set_desc(table, index, address, len, flags, index + 1);
        }
        offer(driver, &[(table, 16 * (size as u32 + 1), INDIRECT, 0)]);
        driver.kick(driver.main);
        driver.wait_needs_reset();
    });
}

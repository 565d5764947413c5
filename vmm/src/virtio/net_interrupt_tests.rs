//! When a network card interrupts its driver.

use std::io::Write;

use super::net_tests::{Cable, cable, frame};
use super::test_driver::{Driver, USED_BUFFER};

const RECEIVES: usize = 0;

fn is_told(driver: &mut Driver) -> bool {
    driver.interrupt_status() & USED_BUFFER != 0
}

#[test]
fn a_frame_that_comes_in_parts_has_one_interrupt_with_those_before_it() {
    let ends: [fn(&mut Cable); 2] = [
        |cable| cable.other.write_all(&frame(100)[50..]).unwrap(),
        |cable| cable.driver.paused(|_| {}),
    ];
    for end in ends {
        let mut cable = cable();
        cable.offers(4, 1536);
        let frames = [&[0, 0, 0, 60], &frame(60)[..], &[0, 0, 0, 100], &frame(100)[..50]].concat();
        cable.other.write_all(&frames).unwrap();
        cable.driver.wait_until("the first", |driver| driver.used_index(RECEIVES) == 1);
        assert!(!is_told(&mut cable.driver));
        end(&mut cable);
        cable.driver.wait_until("an interrupt", is_told);
    }
}

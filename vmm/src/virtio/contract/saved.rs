//! A device that is saved goes on in another process, whatever is in what was saved.

use serde_json::Value;

use super::*;
use crate::virtio::saved::VirtioState;

/// The state of the driver's device, as text.
fn saved(driver: &mut Driver) -> Value {
    driver.mmio.transport.pause();
    serde_json::to_value(driver.mmio.save().unwrap()).unwrap()
}

fn state(value: &Value) -> Option<VirtioState> {
    serde_json::from_str(&value.to_string()).ok()
}

#[test]
fn a_saved_device_goes_on_in_a_new_one_with_each_request_answered_once() {
    for_each_device(|case, driver| {
        driver.init();
        case.works(driver);
        case.add(driver, case.main);
        let state = state(&saved(driver)).unwrap();
        driver.exchange((case.make)());
        driver.mmio.restore(&state).unwrap();
        driver.mmio.transport.resume().unwrap();
        driver.wait_used(case.main);
        assert_eq!(driver.unanswered(case.main), 0);
        case.works(driver);
        driver.reset();
    });
}

#[test]
fn a_device_that_no_driver_has_set_up_is_saved_too() {
    for_each_device(|case, driver| {
        let before = saved(driver);
        driver.exchange((case.make)());
        driver.mmio.restore(&state(&before).unwrap()).unwrap();
        assert_eq!(saved(driver), before);
    });
}

/// Calls `found` with a copy of `whole` for each of its numbers, in which that number is `other`.
fn each_number(whole: &Value, other: u64, found: &mut dyn FnMut(&Value)) {
    fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields
                    .iter()
                    .for_each(|(key, value)| pointers(value, format!("{at}/{key}"), found));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| pointers(value, format!("{at}/{index}"), found));
            }
            Value::Number(_) => found.push(at),
            _ => {}
        }
    }
    let mut all = Vec::new();
    pointers(whole, String::new(), &mut all);
    assert!(all.len() > 10, "{all:?}");
    for at in all {
        let mut damaged = whole.clone();
        *damaged.pointer_mut(&at).unwrap() = other.into();
        found(&damaged);
    }
}

#[test]
fn a_damaged_state_is_refused_or_harmless() {
    for_each_device(|case, driver| {
        driver.init();
        case.works(driver);
        case.add(driver, case.main);
        let whole = saved(driver);
        for other in [0, 1, 3, 0x7fff, 0xffff, 0xffff_ffff, 1 << 32, u64::MAX - 4095, u64::MAX] {
            each_number(&whole, other, &mut |damaged| {
                let Some(state) = state(damaged) else { return };
                driver.exchange((case.make)());
                if driver.mmio.restore(&state).is_ok() {
                    driver.mmio.transport.resume().unwrap();
                }
                driver.reset();
            });
        }
    });
}

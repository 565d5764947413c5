//! Random drivers.

use std::thread;
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::{DEVICE_CASES, in_time};
use crate::bus::BusDevice;
use crate::layout::VIRTIO_MMIO_SIZE;
use crate::virtio::test_driver::{DATA, Driver, RAM_SIZE, rings};

#[derive(Clone, Debug)]
enum Step {
    Init,
    Read { offset: u64, width: usize },
    Write { offset: u64, width: usize, value: u64 },
    Describe { indirect: bool, index: u16, addr: u64, len: u32, flags: u16, next: u16 },
    Offer { queue: usize, head: u16 },
    SetAvailIndex { queue: usize, index: u16 },
    Scribble { address: u64, value: u64 },
    Kick { queue: usize },
    Request,
    PauseAndResume,
    Wait,
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..4,
        1 => select(vec![8, 16, 64, 256, 512, 4096]),
        1 => any::<u64>(),
        1 => (0u32..64).prop_map(|bit| 1 << bit),
        1 => Just(u64::MAX),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || {
        let registers = (0..VIRTIO_MMIO_CONFIG / 4).prop_map(|index| u64::from(index) * 4);
        prop_oneof![4 => registers, 1 => 0..VIRTIO_MMIO_SIZE - 8]
    };
    let width = || prop_oneof![4 => Just(4usize), 1 => select(vec![1, 2, 8])];
    let address = || {
        let edge = (RAM_SIZE - 64)..(RAM_SIZE + 64);
        prop_oneof![4 => DATA..RAM_SIZE, 2 => 0..DATA, 1 => edge, 1 => number()]
    };
    let desc = (any::<bool>(), 0..6u16, address(), number(), 0..8u16, 0..7u16);
    prop_oneof![
        2 => Just(Step::Init),
        1 => (offset(), width()).prop_map(|(offset, width)| Step::Read { offset, width }),
        6 => (offset(), width(), number())
            .prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        8 => desc.prop_map(|(indirect, index, addr, len, flags, next)| {
            Step::Describe { indirect, index, addr, len: len as u32, flags, next }
        }),
        4 => (0..2usize, 0..7u16).prop_map(|(queue, head)| Step::Offer { queue, head }),
        1 => (0..2usize, number())
            .prop_map(|(queue, index)| Step::SetAvailIndex { queue, index: index as u16 }),
        2 => (0..0x8000u64, number())
            .prop_map(|(at, value)| Step::Scribble { address: rings(0)[0] + at, value }),
        3 => (0..3usize).prop_map(|queue| Step::Kick { queue }),
        2 => Just(Step::Request),
        1 => Just(Step::PauseAndResume),
        1 => Just(Step::Wait),
    ]
}

fn take(step: Step, case: &super::DeviceCase, driver: &mut Driver) {
    match step {
        Step::Init => driver.init(),
        Step::Read { offset, width } => driver.mmio.read(offset, &mut [0xff; 8][..width]),
        Step::Write { offset, width, value } => {
            driver.mmio.write(offset, &value.to_le_bytes()[..width]);
        }
        Step::Describe { indirect, index, addr, len, flags, next } => {
            let table = rings(driver.main)[if indirect { 3 } else { 0 }];
            driver.set_desc(table, index, addr, len, flags, next);
        }
        Step::Offer { queue, head } => driver.offer(queue % driver.queue_count(), head),
        Step::SetAvailIndex { queue, index } => {
            driver.set_avail_index(queue % driver.queue_count(), index);
        }
        Step::Scribble { address, value } => driver.write(address, &value.to_le_bytes()),
        Step::Kick { queue } => driver.kick(queue),
        Step::Request => _ = case.add(driver, case.main),
        Step::PauseAndResume => driver.paused(|_| {}),
        Step::Wait => thread::sleep(Duration::from_micros(100)),
    }
}

#[test]
fn whatever_a_driver_does_the_device_works_after_a_reset() {
    for case in &DEVICE_CASES {
        in_time(case.name, move || {
            let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
            let steps = proptest::collection::vec(step(), 1..80);
            let run = TestRunner::new(config).run(&steps, |steps| {
                let mut driver = case.driver();
                driver.init();
                steps.into_iter().for_each(|step| take(step, case, &mut driver));
                driver.init();
                case.works(&mut driver);
                Ok(())
            });
            run.unwrap();
        });
    }
}

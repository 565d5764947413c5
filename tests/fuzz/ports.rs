//! The devices on a PC's ports: reads and writes in any order, of any width.

use std::sync::{Arc, Mutex};

use tinyvmm::bus::{Bus, BusDevice};
use tinyvmm::devices::output::Output;
use tinyvmm::devices::power::PanicFlag;
use tinyvmm::devices::rtc::Rtc;
use tinyvmm::devices::serial::SerialPort;
use tinyvmm::layout::{RTC_PORTS, SERIAL_PORTS};
use tinyvmm::sync::lock;
use tinyvmm::timeline::Timeline;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::Input;

/// Each step: action, width and address; the value of a write, or of the user's input.
fn each_access(
    data: &[u8],
    start: u64,
    device: Arc<Mutex<dyn BusDevice>>,
    mut after: impl FnMut(&mut Input),
) {
    let mut bus = Bus::default();
    bus.insert(start..start + 8, device).unwrap();
    let mut input = Input(data);
    let mut step = |input: &mut Input| {
        let what = input.u8()?;
        let width = input.width()?;
        let port = start + u64::from(input.u8()? & 15);
        match what % 8 {
            0..=2 => bus.read(port, &mut [0; 8][..width]),
            3..=6 => bus.write(port, &input.u64()?.to_le_bytes()[..width]),
            _ => after(input),
        }
        Some(())
    };
    while step(&mut input).is_some() {}
}

pub fn serial(data: &[u8]) {
    let page = MmapRegion::new(4096).unwrap();
    // Another mapping of the same memory is what the guest sees; here its owner looks at the port itself.
    let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
    let output = Output::new(false).unwrap();
    let (panicked, timeline) = (PanicFlag::default(), Timeline::default());
    let port = SerialPort::new(interrupt, output.clone(), panicked, timeline, Some(page));
    let port = Arc::new(Mutex::new(port));
    each_access(data, SERIAL_PORTS.start, port.clone(), |input| {
        let typed = input.u8().and_then(|len| input.bytes(len.into())).unwrap_or_default();
        assert!(lock(&port).receive(typed) <= typed.len());
        output.written(output.front(typed.len()).len());
    });
    assert!(output.front(usize::MAX).len() <= data.len());
}

pub fn rtc(data: &[u8]) {
    let clock = Arc::new(Mutex::new(Rtc::default()));
    each_access(data, RTC_PORTS.start, clock.clone(), |_| {
        let mut value = [0];
        lock(&clock).read(1, &mut value);
        assert!(value[0] == 0x26 || value[0] == 0x80 || value[0] & 15 < 10, "no BCD: {value:x?}");
    });
}

pub fn seeds() -> Vec<Vec<u8>> {
    let write = |port: u8, value: u8| [&[3, 0, port, value][..], &[0; 7]].concat();
    let each: Vec<u8> = (0..8).flat_map(|port| [0, 0, port]).collect();
    let dlab = [write(3, 0x83), write(0, 1), write(1, 0), write(3, 3), write(1, 0xf)].concat();
    let print: Vec<u8> = b"Kernel panic - not syncing".iter().flat_map(|c| write(0, *c)).collect();
    let clock: Vec<u8> = (0..0x40).flat_map(|at| [write(0, at), vec![7, 0, 0]].concat()).collect();
    let loopback = [write(4, 0x1f), write(1, 5), write(0, 65), each.clone()].concat();
    let typed = [&write(1, 1)[..], &[7, 0, 0, 3], b"abc", &[0, 0, 0, 0, 0, 0]].concat();
    vec![each, dlab, print, clock, loopback, typed]
}

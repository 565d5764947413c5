//! A hostile driver: registers, rings and descriptors as the input says. Whatever it did, the device works after
//! a reset.

use std::thread;
use std::time::Duration;

use tinyvmm::bus::BusDevice;
use tinyvmm::layout::VIRTIO_MMIO_SIZE;
use tinyvmm::virtio::contract::{BLOCK, DEVICE_CASES, DeviceCase, HOTPLUG_START};
use tinyvmm::virtio::test_driver::{DATA, Driver, HIGH_RAM, RAM_SIZE, rings};

use crate::input::Input;

/// More steps than this only take time.
const MAX_STEPS: usize = 100;

/// A device without a thread: the same input always does the same.
pub fn device(case: &DeviceCase, data: &[u8]) {
    drive(case, case.driver().by_hand(), Input(data));
}

/// The registers of every device, each on its own thread. The first byte says which.
pub fn mmio(data: &[u8]) {
    let mut input = Input(data);
    let Some(which) = input.u8() else { return };
    let case = &DEVICE_CASES[usize::from(which) % DEVICE_CASES.len()];
    drive(case, case.driver(), input);
}

fn drive(case: &DeviceCase, mut driver: Driver, mut input: Input) {
    driver.init();
    for _ in 0..MAX_STEPS {
        if step(case, &mut driver, &mut input).is_none() {
            break;
        }
    }
    driver.init();
    case.works(&mut driver);
}

/// `None` at the end of the input.
fn step(case: &DeviceCase, driver: &mut Driver, input: &mut Input) -> Option<()> {
    let op = input.u8()?;
    let queue = usize::from(op >> 6) % driver.queue_count();
    match op & 15 {
        0 => {
            let (offset, width) = (input.u16()?, input.width()?);
            driver.mmio.read(u64::from(offset) % (VIRTIO_MMIO_SIZE - 8), &mut [0xff; 8][..width]);
        }
        1 => {
            let (offset, width, value) = (input.u16()?, input.width()?, input.u64()?);
            let offset = u64::from(offset) % (VIRTIO_MMIO_SIZE - 8);
            driver.mmio.write(offset, &value.to_le_bytes()[..width]);
        }
        2 | 3 => driver.set(u32::from(input.u8()? & 63) * 4, input.u32()?),
        4 => drop(driver.get(u32::from(input.u8()? & 63) * 4)),
        5 | 6 => describe(driver, queue, input)?,
        7 => driver.offer(queue, input.u16()?),
        8 => driver.set_avail_index(queue, input.u16()?),
        9 => driver.write(rings(queue)[0] + u64::from(input.u16()? % 0x3ff8), input.bytes(8)?),
        10 => chain(driver, queue, input)?,
        11 => _ = case.add(driver, queue),
        12 => driver.paused(|_| {}),
        13 => {
            let all = driver.offered_features();
            driver.init_with(input.u64()? & all | 1 << 32);
        }
        14 => thread::sleep(Duration::from_micros(20)),
        _ => driver.kick(queue),
    }
    if op & 32 != 0 {
        driver.kick(queue);
    }
    Some(())
}

/// A descriptor of any kind, in the table or in the indirect one.
fn describe(driver: &Driver, queue: usize, input: &mut Input) -> Option<()> {
    let (index, flags, next) = (input.u8()?, input.u8()?, input.u8()?);
    let address = match flags >> 4 & 7 {
        0 => rings(queue)[3],
        1 => RAM_SIZE - 256 + u64::from(input.u16()? & 511),
        2 => input.u64()?,
        3 => HIGH_RAM + u64::from(input.u16()?),
        4 => u64::from(input.u16()?),
        _ => DATA + u64::from(input.u16()?) * 4,
    };
    let table = rings(queue)[if flags & 128 == 0 { 0 } else { 3 }];
    let len = input.u32()?;
    driver.set_desc(table, index.into(), address, len, u16::from(flags & 15), next.into());
    Some(())
}

/// A request that a driver could make: some bytes in pieces, and pieces to answer in.
fn chain(driver: &mut Driver, queue: usize, input: &mut Input) -> Option<()> {
    let shape = input.u8()?;
    let len = input.u8()?;
    let contents = input.bytes(len.into())?;
    driver.write(DATA, contents);
    let mut buffers = Vec::new();
    let mut free = DATA;
    for _ in 0..shape & 3 {
        let len = u64::from(input.u8()?).min(DATA + contents.len() as u64 - free);
        buffers.push((free, len as u32, false));
        free += len;
    }
    buffers.push((free, (DATA + contents.len() as u64 - free) as u32, false));
    free = DATA + 0x1000;
    for _ in 0..shape >> 2 & 7 {
        let len = input.u16()?;
        buffers.push((free, len.into(), true));
        free += u64::from(len);
    }
    buffers.retain(|(_, len, _)| *len > 0);
    match (buffers.is_empty(), shape & 128 == 0) {
        (true, _) => {}
        (_, true) => _ = driver.add(queue, &buffers),
        (_, false) => _ = driver.add_indirect(queue, &buffers),
    }
    driver.kick(queue);
    Some(())
}

/// Requests that mean something to one device or another, each of which is served.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![11, 15], vec![11 + 64, 15 + 64, 12, 11, 15]];
    for kind in 0..16 {
        for (sector, room) in [(0, 1), (1, 513), (200, 21)] {
            let mut contents = vec![0; 64];
            contents[0] = kind;
            contents[8] = sector;
            contents[16] = sector; // a range's sector, its count behind it
            contents[24] = 1;
            for len in [16, 20, 32, 63] {
                let mut seed = vec![10, 4 << (kind & 1), len];
                seed.extend(&contents[..len.into()]);
                seed.extend([room as u8, (room >> 8) as u8, 1, 0]);
                seeds.push(seed);
            }
        }
    }
    // Blocks of memory, their first and count as virtio-mem has them.
    for (kind, block, count) in [(0, 0, 4), (0, 2, 1), (1, 1, 2), (2, 0, 0), (3, 0, 70), (0, 0, 70)]
    {
        let mut contents = [0; 24];
        contents[0] = kind;
        contents[8..16].copy_from_slice(&(HOTPLUG_START + block * BLOCK).to_le_bytes());
        contents[16] = count;
        seeds.push([&[10, 4, 24], &contents[..], &[10, 0]].concat());
    }
    // Packets of a vsock device: a connection is requested, something is done with it, and there are buffers for answers.
    for op in 1..8 {
        let mut header = [0; 48];
        for (at, value) in [(0, 3), (8, 2), (16, 9), (20, 52), (28, 1), (30, 1), (38, 1)] {
            header[at] = value;
        }
        let request = [&[10 + 64, 0, 48][..], &header].concat();
        let room = [10, 4, 0, 0, 16];
        (header[24], header[30], header[32]) = (if op == 5 { 4 } else { 0 }, op, op & 3);
        let more = [&[10 + 64, 0, 48][..], &header, &[14, 14, 15]].concat();
        seeds.push([&room, &room, &request[..], &[14, 14, 15], &more, &more].concat());
    }
    // By hand: a descriptor of each kind, a chain in the indirect table.
    let desc = |index: u8, flags: u8, next: u8, at: u16, len: u32| {
        [&[5, index, flags, next][..], &at.to_le_bytes(), &len.to_le_bytes()].concat()
    };
    let offer = [7, 0, 0, 15];
    seeds.push([desc(0, 0x51, 1, 0, 16), desc(1, 0x52, 0, 64, 513), offer.into()].concat());
    let table = [&[5, 0, 4, 0][..], &32u32.to_le_bytes()].concat();
    let chain = [desc(0, 0xd1, 1, 0, 16), desc(1, 0xd2, 0, 64, 513)].concat();
    seeds.push([chain, table, offer.into()].concat());
    seeds
}

/// The same for each device, and a driver that sets up everything itself.
pub fn mmio_seeds() -> Vec<Vec<u8>> {
    let set = |register: u8, value: u32| [&[2, register / 4][..], &value.to_le_bytes()].concat();
    let [desc, avail, used, _] = rings(0).map(|at| at as u32);
    let setup = [
        set(0x70, 0),
        set(0x70, 1),
        set(0x70, 3),
        set(0x24, 1),
        set(0x20, 1),
        set(0x70, 11),
        set(0x30, 0),
        set(0x38, 8),
        set(0x80, desc),
        set(0x90, avail),
        set(0xa0, used),
        set(0x44, 1),
        set(0x70, 15),
        vec![11, 15, 14],
        set(0x64, 3),
        (0..64).flat_map(|register| [4, register]).collect(),
    ];
    let mut seeds = seeds();
    seeds.push(setup.concat());
    let count = DEVICE_CASES.len() as u8;
    seeds.iter().enumerate().map(|(at, seed)| [&[at as u8 % count], &seed[..]].concat()).collect()
}

//! What a guest may try. Each attack is a round of some milliseconds, which both CPUs do at the same time.

use crate::folder::Folder;
use crate::machine::{self, read, write};
use crate::random::Random;
use crate::virtio::{COUNT, DATA, DATA_LEN, Device, QUEUE_READY, QUEUE_SEL, Rings, SIZE, STATUS};

/// Which CPU it is, its random numbers, and what is attacked.
pub struct Attacker {
    pub cpu: u32,
    pub random: Random,
    pub disk: Device,
    pub rng: Device,
    pub folder: Option<Device>,
}

pub type Round = fn(&mut Attacker) -> Result<(), &'static str>;

pub const ATTACKS: [(&str, Round); 11] = [
    ("registers", registers),
    ("reset", reset),
    ("doorbell", doorbell),
    ("moved", moved),
    ("rings", rings),
    ("chains", chains),
    ("folder", folder),
    ("serial", serial),
    ("ports", ports),
    ("holes", holes),
    ("all", all),
];

/// Addresses that no ring or buffer should have: the ends of RAM and of the address space, registers, holes.
const NASTY: [u64; 14] = [
    0,
    1,
    8,
    0x3ff_fff0,
    0x400_0000,
    0xbfff_fff0,
    0xd000_0000,
    0xd010_0000,
    0xfee0_0000,
    0xffff_fff0,
    1 << 32,
    1 << 52,
    u64::MAX - 15,
    u64::MAX,
];

impl Attacker {
    fn device(&mut self) -> Device {
        match self.random.below(4) {
            0 => self.rng,
            1 => self.folder.unwrap_or(self.disk),
            _ => self.disk,
        }
    }

    fn address(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.one_of(&NASTY),
            1 => self.random.one_of(&NASTY).wrapping_add(self.random.below(64)),
            _ => DATA + self.random.below(DATA_LEN),
        }
    }

    /// Sets the device up and fills its queues.
    fn work(&mut self, device: Device) {
        device.init();
        for slot in 0..8 {
            device.ask(slot % 4, slot as u16, self.random.below(64) * 2, 0x1_0000);
        }
        (0..4).for_each(|queue| device.kick(queue));
    }
}

/// One access of 1, 2, 4 or 8 bytes.
fn access(random: &mut Random, address: u64) {
    let value = match random.below(3) {
        0 => random.next(),
        1 => random.below(16),
        _ => random.one_of(&NASTY),
    };
    match random.below(8) {
        0 => write(address, value as u8),
        1 => write(address, value as u16),
        2 | 3 => write(address, value as u32),
        4 => write(address, value),
        5 => drop(read::<u8>(address)),
        6 => drop(read::<u32>(address)),
        _ => drop(read::<u64>(address)),
    }
}

/// Both CPUs at any register of any device, while the devices work.
fn registers(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = attacker.device();
    attacker.work(device);
    for _ in 0..64 {
        let random = &mut attacker.random;
        let window = Device::at(random.below(COUNT)).base;
        let offset =
            if random.below(4) == 0 { random.below(0xff8) } else { random.below(0x4c) * 4 };
        access(random, window + offset);
    }
    Ok(())
}

/// Reset while requests are in flight: after it, none of them may complete.
fn reset(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = if attacker.cpu == 0 { attacker.disk } else { attacker.rng };
    let mark = attacker.random.next();
    attacker.work(device);
    (0..attacker.random.below(2000)).for_each(|_| core::hint::spin_loop());
    device.reset();
    let used = (0..4).map(|queue| device.rings(queue).used);
    let written = used.chain((0..4).map(|slot| device.data(slot)));
    written.clone().for_each(|at| write(at, mark));
    if device.get(STATUS) != 0 {
        return Err("a reset leaves a status");
    }
    (0..20_000).for_each(|_| core::hint::spin_loop());
    match written.clone().all(|at| read::<u64>(at) == mark) {
        true => Ok(()),
        false => Err("a request is answered after the reset"),
    }
}

/// Kicks of queues that are there and that are not, with nothing to do or much.
fn doorbell(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = attacker.device();
    if attacker.random.below(8) == 0 {
        attacker.work(device);
    }
    for _ in 0..200 {
        let queue = attacker.random.one_of(&[0, 1, 2, 3, 4, 7, 0xffff, 0xffff_ffff]);
        device.kick(queue);
    }
    Ok(())
}

/// Queues that are moved, resized or taken away while they are in use.
fn moved(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = attacker.device();
    if attacker.cpu == 0 || attacker.random.below(16) == 0 {
        attacker.work(device);
    }
    for _ in 0..32 {
        device.set(QUEUE_SEL, attacker.random.below(6) as u32);
        let register =
            attacker.random.one_of(&[0x38, QUEUE_READY, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4]);
        let value = match attacker.random.below(3) {
            0 => attacker.random.below(1 << 17),
            _ => attacker.address(),
        };
        device.set(register, value as u32);
        device.kick(attacker.random.below(4));
    }
    Ok(())
}

/// Rings in registers, past RAM, across its end, unaligned, on top of each other; sizes of all kinds.
fn rings(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = attacker.device();
    device.negotiate();
    for queue in 0..4 {
        let size =
            attacker.random.one_of(&[0, 1, 2, 3, 64, 255, 256, 257, 0x8000, 0xffff, 0x1_0000]);
        let good = device.rings(queue);
        let mut part = |good| if attacker.random.below(2) == 0 { good } else { attacker.address() };
        let rings = Rings { desc: part(good.desc), avail: part(good.avail), used: part(good.used) };
        device.describe(queue, size, rings);
    }
    device.set(STATUS, 15);
    (0..5).for_each(|queue| device.kick(queue));
    Ok(())
}

/// Descriptors, indices and requests of any content, written while the device follows them.
fn chains(attacker: &mut Attacker) -> Result<(), &'static str> {
    let device = attacker.device();
    attacker.work(device);
    // Not those before: the host looks at one of them.
    let sectors = [64, 65, 2047, 2048, 32_767, 32_768, u64::MAX >> 9, u64::MAX];
    for _ in 0..32 {
        let queue = attacker.random.below(4);
        for _ in 0..8 {
            let (address, random) = (attacker.address(), &mut attacker.random);
            let len = random.one_of(&[0, 1, 15, 16, 17, 512, 4096, 0xffff_ffff, 0x8000_0000]);
            let flags = random.below(8) as u16; // NEXT, WRITE, INDIRECT
            let (index, next) = (random.below(SIZE.into()) as u16, random.below(80) as u16);
            device.set_descriptor(queue, index, address, len, flags, next);
        }
        let random = &mut attacker.random;
        // Headers of requests, too, and tables of descriptors.
        let header = DATA + random.below(DATA_LEN - 16);
        write(header, random.below(16));
        write(header + 8, random.one_of(&sectors));
        let avail = device.rings(queue).avail;
        match random.below(8) {
            0 => write(avail + 2, random.next() as u16),
            1 => write(avail, random.next()),
            2 => device.reset(),
            _ => device.offer(queue, random.below(80) as u16),
        }
        device.kick(queue);
    }
    Ok(())
}

/// Requests to a folder of the host, while the other CPU has the disk work.
fn folder(attacker: &mut Attacker) -> Result<(), &'static str> {
    match attacker.folder {
        Some(device) if attacker.cpu == 0 => {
            let mut folder = Folder::open(device);
            let mut left = 64;
            while folder.is_served && left > 0 {
                folder.attack(&mut attacker.random);
                left -= 1;
            }
        }
        _ => attacker.work(attacker.disk),
    }
    Ok(())
}

/// Much output, and all else that can be done to a serial port.
fn serial(attacker: &mut Attacker) -> Result<(), &'static str> {
    if attacker.cpu == 0 {
        (0..512).for_each(|_| machine::poke_serial(0, b'x'));
    } else {
        for _ in 0..32 {
            let (index, value) = (attacker.random.below(8), attacker.random.next());
            machine::poke_serial(index, value as u8);
        }
    }
    Ok(())
}

/// Accesses of every width to any port, by a CPU that is started for it again and again.
fn ports(attacker: &mut Attacker) -> Result<(), &'static str> {
    match attacker.cpu {
        0 => machine::storm_ports(200, attacker.random.next() as u32),
        _ => registers(attacker)?,
    }
    Ok(())
}

/// Accesses to where no RAM is, device or not; but not to the local APIC.
fn holes(attacker: &mut Attacker) -> Result<(), &'static str> {
    for _ in 0..64 {
        let random = &mut attacker.random;
        let start =
            random.one_of(&[0xc000_0000, 0xcfff_f000, 0xd000_0000, 0xd010_0000, 0xfec0_0000]);
        let offset = random.one_of(&[0x1000, 0x10_0000]);
        let address = start + random.below(offset);
        access(random, address);
    }
    Ok(())
}

fn all(attacker: &mut Attacker) -> Result<(), &'static str> {
    // The one that checks memory after a reset wants the devices for itself.
    let others = [registers, doorbell, moved, rings, chains, folder, serial, ports, holes];
    attacker.random.one_of(&others)(attacker)
}

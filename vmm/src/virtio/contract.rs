//! One contract for every virtio device: whatever a driver does, the device neither panics nor
//! hangs, and works again after a reset.

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod chains;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod notifications;
#[cfg(test)]
mod queue_setup;
#[cfg(test)]
mod random;
#[cfg(test)]
mod registers;
#[cfg(test)]
mod saved;
#[cfg(test)]
mod turns;

use std::collections::VecDeque;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::{io, thread};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vmm_sys_util::tempfile::TempFile;

use super::VirtioDevice;
use super::balloon::Balloon;
use super::block::Block;
use super::mem::Mem;
use super::net::Net;
use super::rng::Rng;
use super::test_driver::{DATA, Driver, RAM_SIZE};
use super::vsock::Vsock;
use super::vsock::host::{CALL, Host};
use crate::config::{BalloonFeatures, DiskConfig, Mac};
use crate::disk_image;
use crate::memory::hotplug::{Hotplug, Slots};
use crate::memory::{self, GuestRam, RamRegion, of_ranges};
use crate::wire::Wire;

/// A device and a request to which it responds with `written` of `room` bytes.
pub struct DeviceCase {
    pub name: &'static str,
    pub make: fn() -> Box<dyn VirtioDevice>,
    request: &'static [u8],
    room: usize,
    written: usize,
    /// Queues whose requests are completed later, when there is a reason.
    late: &'static [usize],
    /// A queue whose requests are completed at once.
    main: usize,
}

/// All devices. A new device is a new line, which has it tested and fuzzed.
pub const DEVICE_CASES: [DeviceCase; 9] = [
    disks("disk", || disk("")),
    disks("read-only disk", || disk(",readonly")),
    disks("overlay", || disk(",overlay")),
    DeviceCase {
        name: "rng",
        make: || Box::new(Rng::default()),
        request: &[],
        room: 64,
        written: 64,
        late: &[],
        main: 0,
    },
    // Puts the last page of RAM into the balloon, or reports the buffer as free.
    DeviceCase {
        name: "balloon",
        make: || Box::new(Balloon::new(RAM_SIZE, 0, Default::default()).unwrap()),
        request: &[0xff, 0, 0, 0],
        room: 513,
        written: 0,
        late: &[2],
        main: 0,
    },
    DeviceCase {
        name: "balloon that asks for hints",
        make: || Box::new(hinting_balloon()),
        request: &[0xff, 0, 0, 0],
        room: 513,
        written: 0,
        late: &[2],
        main: 0,
    },
    // Sends a frame; what it could receive never comes.
    DeviceCase {
        name: "net",
        make: || Box::new(card()),
        request: &[0; 12 + 60],
        room: 513,
        written: 0,
        late: &[0],
        main: 1,
    },
    // Sends a packet from another guest's address, which has no effect.
    DeviceCase {
        name: "vsock",
        make: || Box::new(vsock()),
        request: &[0; 44],
        room: 513,
        written: 0,
        late: &[0, 2],
        main: 1,
    },
    // Plugs the second block; a repetition gets an error.
    DeviceCase {
        name: "mem",
        make: || Box::new(memory(&of_ranges(&[(0, 4096)]))),
        request: &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        room: 513,
        written: 10,
        late: &[],
        main: 0,
    },
];

/// A balloon with all features.
fn hinting_balloon() -> Balloon {
    let features = BalloonFeatures { hinting: true, ..Default::default() };
    Balloon::new(RAM_SIZE, 0, features).unwrap()
}

/// Address, number and size of pluggable blocks.
pub const HOTPLUG_START: u64 = 0x1_0010_0000;
pub const BLOCKS: u64 = 70;
pub const BLOCK: u64 = 1 << 17;

/// Adds that region to a machine's RAM.
pub fn with_hotplug_region(ram: &GuestRam) -> GuestRam {
    memory::with_hotplug_region_in(ram, HOTPLUG_START, BLOCKS * BLOCK, BLOCK)
}

/// A virtio-mem device that requests all blocks, in a machine without CPUs.
fn memory(ram: &GuestRam) -> Mem {
    struct NoCpus;
    impl Slots for NoCpus {
        fn set(&self, _: &RamRegion, _: usize, _: bool) -> anyhow::Result<()> {
            Ok(())
        }
    }
    let device = Mem::new(Hotplug::new(&with_hotplug_region(ram), NoCpus).unwrap());
    device.handle().request(BLOCKS * BLOCK).unwrap();
    device
}

/// A card whose other end takes all and sends nothing.
fn card() -> Net {
    let (mut other, end) = UnixStream::pair().unwrap();
    thread::spawn(move || io::copy(&mut other, &mut io::sink()));
    Net::new(Wire::stream(end.into()).unwrap(), 0, Mac([2, 0, 0, 0, 0, 1]), Some(65520))
}

/// A device of a guest with the address 3. Programs of its host accept all connections, read nothing, and end after some time.
fn vsock() -> Vsock {
    let (mut other, dialer) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut programs = VecDeque::new();
        let mut call = [0; CALL];
        while other.read_exact(&mut call).is_ok() {
            let (program, stream) = UnixStream::pair().unwrap();
            stream.set_nonblocking(true).unwrap();
            programs.push_back(program);
            programs.drain(..programs.len().saturating_sub(4));
            let [.., a, b, c, d] = call;
            answer(&other, [a, b, c, d], Some(&stream));
        }
    });
    let address = SocketAddr::from_abstract_name(crate::random::bytes::<16>().unwrap()).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    Vsock::new(3, Host::new(listener.into(), dialer.into()).unwrap())
}

/// A dialer's answer to the call with this tag: a connection, or none.
pub(super) fn answer(dialer: &UnixStream, tag: [u8; 4], stream: Option<&UnixStream>) {
    let answer = [tag, u32::from(stream.is_none()).to_le_bytes()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let streams = stream.map(|stream| [stream.as_fd()]);
    if let Some(streams) = &streams {
        assert!(control.push(SendAncillaryMessage::ScmRights(streams)));
    }
    // Nobody waits any more for an answer that fails.
    let _ = sendmsg(dialer, &[IoSlice::new(&answer)], &mut control, SendFlags::NOSIGNAL);
}

const fn disks(name: &'static str, make: fn() -> Box<dyn VirtioDevice>) -> DeviceCase {
    DeviceCase { name, make, request: &[0; 16], room: 513, written: 513, late: &[], main: 0 }
}

fn disk(options: &str) -> Box<dyn VirtioDevice> {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(64 << 10).unwrap();
    let config: DiskConfig = format!("{}{options}", file.as_path().display()).parse().unwrap();
    let image = disk_image::open(&config);
    Box::new(Block::new(image.unwrap(), 0, None, 2).unwrap())
}

impl DeviceCase {
    /// A driver of the device after power-on.
    pub fn driver(&self) -> Driver {
        let mut driver = Driver::new((self.make)());
        driver.main = self.main;
        driver
    }

    /// Checks that a request on each queue is completed.
    pub fn works(&self, driver: &mut Driver) {
        for queue in self.prompt(driver) {
            let (_, written) = driver.request(queue, self.request, self.room);
            assert_eq!(written as usize, self.written);
        }
    }

    /// The queues that complete requests at once.
    fn prompt(&self, driver: &Driver) -> impl Iterator<Item = usize> + use<> {
        let late = self.late;
        (0..driver.queue_count()).filter(move |queue| !late.contains(queue))
    }

    /// Makes a valid request available without waiting for its response.
    pub fn add(&self, driver: &mut Driver, queue: usize) -> u16 {
        let len = self.request.len() as u32;
        let mut buffers = vec![(DATA, len, false), (DATA + 0x1000, self.room as u32, true)];
        buffers.retain(|(_, len, _)| *len > 0);
        driver.write(DATA, self.request);
        driver.add(queue, &buffers)
    }
}

/// Runs `check` on each device after power-on; then the device has to work after a reset.
#[cfg(test)]
fn for_each_device(check: fn(&DeviceCase, &mut Driver)) {
    for case in &DEVICE_CASES {
        in_time(case.name, move || {
            let mut driver = case.driver();
            check(case, &mut driver);
            driver.init();
            case.works(&mut driver);
        });
    }
}

/// Runs `test` on a thread, so that a hang is a failure.
#[cfg(test)]
fn in_time(name: &str, test: impl FnOnce() + Send + 'static) {
    use std::panic::resume_unwind;
    use std::time::{Duration, Instant};
    let thread = thread::Builder::new().name(name.to_owned()).spawn(test).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !thread.is_finished() {
        assert!(Instant::now() < end, "{name} hangs");
        thread::sleep(Duration::from_millis(1));
    }
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

//! A process that serves a device, and sends anything at all.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use tinyvmm::backend::Backend;
use tinyvmm::config::VhostUserKind;
use tinyvmm::memory;
use tinyvmm::virtio::test_driver::{DATA, Driver, HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE};
use tinyvmm::virtio::vhost_user::VhostUser;

/// The first byte says of which kind the device is; what follows is all that the process ever sends. Its driver goes on,
/// whatever that is.
pub fn messages(data: &[u8]) {
    let Some((which, messages)) = data.split_first() else { return };
    let kind = match which & 1 {
        0 => VhostUserKind::Block,
        _ => VhostUserKind::Files("home".into()),
    };
    let (socket, mut its) = UnixStream::pair().unwrap();
    // What there is no room for is never sent.
    its.set_nonblocking(true).unwrap();
    let _ = its.write(messages);
    its.shutdown(Shutdown::Write).unwrap();
    let (queues, config_len) = kind.shape();
    let Ok(backend) = Backend::greet(socket, queues, config_len) else { return };
    let device = Box::new(VhostUser::new(backend, kind, 0).unwrap());
    let ram = memory::shared_of_ranges(&[(0, RAM_SIZE), (HIGH_RAM, HIGH_RAM_SIZE)]);
    let mut driver = Driver::with_ram(device, ram).by_hand();
    for _ in 0..3 {
        driver.init();
        for queue in 0..driver.queue_count() {
            driver.add(queue, &[(DATA, 16, false), (DATA + 16, 16, true)]);
            driver.kick(queue);
        }
        driver.paused(|_| {});
        (0..64).for_each(|at| _ = driver.get(0x100 + at * 4));
    }
}

/// What a process sends that works, up to the third time that its queues are returned.
pub fn conversations() -> Vec<Vec<u8>> {
    let message = |request: u32, payload: &[u8]| {
        let header = [request, 5, payload.len() as u32].map(u32::to_le_bytes);
        [header.as_flattened(), payload].concat()
    };
    let features = message(1, &(1u64 << 32 | 1 << 30 | 3 << 28 | 0xff_ffff).to_le_bytes());
    let protocol = message(15, &(1u64 << 9).to_le_bytes());
    let config = message(24, &[&[0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0][..], &[1; 60]].concat());
    let returned = |queue: u32| message(11, [queue, 0].map(u32::to_le_bytes).as_flattened());
    let block = [&[0], &features[..], &protocol, &config, &returned(0).repeat(3)].concat();
    let queues = [returned(0), returned(1)].concat().repeat(3);
    let files = [&[1], &features[..], &protocol, &queues].concat();
    vec![block, files]
}

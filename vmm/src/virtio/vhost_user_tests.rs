//! A device that another process serves, with a thread that plays the process.

mod player;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use self::player::{Manner, Player};
use super::VirtioDevice;
use super::test_driver::{DATA, Driver, HIGH_RAM, HIGH_RAM_SIZE, RAM_SIZE};
use super::test_log;
use super::vhost_user::VhostUser;
use crate::backend::Backend;
use crate::config::VhostUserKind;
use crate::memory;

fn files() -> VhostUserKind {
    VhostUserKind::Files("home".into())
}

/// A device of `kind`, and what plays its process in this manner.
fn device(kind: VhostUserKind, manner: Manner) -> (Box<dyn VirtioDevice>, Player) {
    let (socket, its) = UnixStream::pair().unwrap();
    let player = Player::start(its, manner);
    let (queues, config_len) = kind.shape();
    let backend = Backend::greet(socket, queues, config_len).unwrap();
    (Box::new(VhostUser::new(backend, kind, 0).unwrap()), player)
}

/// A driver whose RAM the process can map.
fn driver(kind: VhostUserKind, manner: Manner) -> (Driver, Player) {
    let (device, player) = device(kind, manner);
    let ram = memory::shared_of_ranges(&[(0, RAM_SIZE), (HIGH_RAM, HIGH_RAM_SIZE)]);
    (Driver::with_ram(device, ram), player)
}

#[test]
fn requests_are_served_by_the_process_over_resets_pauses_and_returned_queues() {
    let (mut driver, _player) = driver(files(), Manner::Works);
    for _ in 0..3 {
        driver.init();
        for round in 0..5 {
            for queue in [0, 1, 1] {
                let (answer, written) = driver.request(queue, b"Hello, file system", 32);
                assert_eq!((&answer[..18], written), (&b"hELLO, FILE SYSTEM"[..], 18));
            }
            driver.wait_until("an interrupt", |driver| driver.take_interrupt());
            assert_eq!(driver.interrupt_status(), 1, "round {round}");
            driver.acknowledge(1);
            // What comes meanwhile is served afterwards.
            driver.paused(|driver| {
                driver.write(DATA, b"abc");
                driver.add(1, &[(DATA, 3, false), (DATA + 16, 3, true)]);
                driver.kick(1);
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(driver.take_used(1), None, "the process goes on in a pause");
            });
            driver.wait_used(1);
            assert_eq!(driver.read(DATA + 16, 3), b"ABC");
        }
    }
}

#[test]
fn a_driver_reads_what_the_device_is() {
    let (mut fs, _player) = driver(files(), Manner::Works);
    assert_eq!((fs.get(8), fs.queue_count()), (26, 2));
    let config: Vec<u8> = (0..10).flat_map(|at| fs.get(0x100 + 4 * at).to_le_bytes()).collect();
    assert_eq!((&config[..5], &config[36..]), (&b"home\0"[..], &[1, 0, 0, 0][..]));
    assert_eq!(fs.offered_features() & 0xff_ffff, 0);

    let (mut disk, _player) = driver(VhostUserKind::Block, Manner::Works);
    assert_eq!((disk.get(8), disk.queue_count()), (2, 1));
    assert_eq!(disk.get(0x100), 0x0302_0100, "its capacity is the process's");
    // Without VIRTIO_BLK_F_MQ and _CONFIG_WCE, which would have it written to.
    assert_eq!(disk.offered_features() & 0xff_ffff, 0xff_ffff & !(1 << 12 | 1 << 11));
    disk.init();
    assert_eq!(disk.request(0, b"x", 1), (b"X".to_vec(), 1));
}

#[test]
fn a_process_that_ends_or_hangs_breaks_its_device_alone() {
    test_log::keep();
    for manner in [Manner::Ends, Manner::Hangs, Manner::Babbles] {
        let before = test_log::count("share0: its process");
        let (mut driver, player) = driver(files(), manner);
        driver.init();
        driver.add(1, &[(DATA, 3, false), (DATA + 16, 3, true)]);
        driver.kick(1);
        driver.paused(|_| {});
        driver.reset();
        driver.init();
        driver.paused(|_| {});
        assert_eq!(driver.take_used(1), None, "{manner:?}");
        assert_eq!(test_log::count("share0: its process"), before + 1, "{manner:?}");
        drop(driver);
        player.ends();
    }
}

#[test]
fn ram_that_is_given_back_is_gone_for_both() {
    let (mut driver, player) = driver(files(), Manner::Works);
    driver.init();
    driver.request(1, b"x", 1);
    driver.write(DATA, &[7; 4096]);
    let slice = driver.ram.get_slice(vm_memory::GuestAddress(DATA), 4096).unwrap();
    memory::give_back(&driver.ram, &slice).unwrap();
    assert_eq!(driver.read(DATA, 4096), [0; 4096]);
    driver.reset();
    let region = driver.ram.iter().next().unwrap();
    let file = std::fs::File::from(region.shared().unwrap().try_clone_to_owned().unwrap());
    memory::discard(&driver.ram, false).unwrap();
    let mut all = Vec::new();
    (&file).read_to_end(&mut all).unwrap();
    assert!(all.len() as u64 == region.len() && all.iter().all(|byte| *byte == 0));
    drop(driver);
    player.ends();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn any_answer_to_a_greeting_is_refused_or_understood(
        answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..5),
        like_header in any::<bool>(),
    ) {
        let (socket, its) = UnixStream::pair().unwrap();
        let talker = std::thread::spawn(move || player::babble(&its, &answers, like_header));
        // Neither a panic nor a hang.
        let _ = Backend::greet(socket, 2, 60);
        talker.join().unwrap();
    }
}

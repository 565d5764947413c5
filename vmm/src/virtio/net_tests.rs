//! A network card, driven by hand-made rings, with the test at the other end of its wire.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_net as net;

use super::net::Net;
use super::test_driver::{CONFIG_CHANGE, DATA, Driver};
use crate::config::{Bucket, Mac, RateLimit};
use crate::rate::Limiter;
use crate::wire::{HEADER, Wire};

const RECEIVES: usize = 0;
const SENDS: usize = 1;
/// Where frames to be sent are; below it buffers for what comes.
const OUT: u64 = DATA + 0x4_0000;

pub(super) struct Cable {
    pub driver: Driver,
    pub other: UnixStream,
}

pub(super) fn card() -> (Net, UnixStream) {
    let (other, end) = UnixStream::pair().unwrap();
    other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let wire = Wire::stream(end.into()).unwrap();
    (Net::new(wire, 0, Mac([2, 0, 0, 0, 0, 1]), Some(65520)), other)
}

pub(super) fn cable() -> Cable {
    let (net, other) = card();
    let mut driver = Driver::new(Box::new(net));
    driver.init();
    Cable { driver, other }
}

/// `len` bytes that tell their places.
pub(super) fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

impl Cable {
    pub fn sends(&mut self, frame: &[u8]) {
        self.other.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.other.write_all(frame).unwrap();
    }

    pub fn receives(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.other.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.other.read_exact(&mut frame).unwrap();
        frame
    }

    /// Offers `count` buffers of `len` bytes for what comes.
    pub fn offers(&mut self, count: u64, len: u32) {
        for index in 0..count {
            self.driver.add(RECEIVES, &[(DATA + index * u64::from(len), len, true)]);
        }
        self.driver.kick(RECEIVES);
    }

    pub fn driver_sends(&mut self, frame: &[u8]) {
        self.driver.write(OUT, &[0; HEADER]);
        self.driver.write(OUT + HEADER as u64, frame);
        let len = (HEADER + frame.len()) as u32;
        self.driver.add(SENDS, &[(OUT, len, false)]);
        self.driver.kick(SENDS);
    }

    /// The next frame that the driver gets, in buffers of `len` bytes, the first of which is `first` of all.
    fn driver_receives(&mut self, first: u64, len: u64) -> Vec<u8> {
        let (_, written) = self.driver.wait_used(RECEIVES);
        let start = DATA + first * len;
        let mut frame = self.driver.read(start, written as usize);
        let count = u16::from_le_bytes([frame[10], frame[11]]);
        for index in 1..count {
            // All of them are there when the first one is.
            assert_ne!(self.driver.unanswered(RECEIVES), 0);
            let (_, written) = self.driver.wait_used(RECEIVES);
            let next = start + u64::from(index) * len;
            frame.extend(self.driver.read(next, written as usize));
        }
        frame.split_off(HEADER)
    }
}

#[test]
fn frames_go_both_ways_in_as_many_buffers_as_they_need() {
    let mut cable = cable();
    for len in [14, 60, 1514, 40_000, 65_535] {
        cable.driver_sends(&frame(len));
        assert_eq!(cable.receives(), frame(len));
        cable.driver.wait_used(SENDS);
    }
    cable.offers(100, 1536);
    let mut first = 0;
    for len in [14, 1524, 1525, 60, 65_535] {
        cable.sends(&frame(len));
        assert_eq!(cable.driver_receives(first, 1536), frame(len), "{len}");
        first += (HEADER + len).div_ceil(1536) as u64;
    }
    let header = cable.driver.read(DATA, HEADER);
    assert_eq!(header[0], net::VIRTIO_NET_HDR_F_DATA_VALID as u8, "sums were checked already");
    assert_eq!(header[1..10], [0; 9]);
}

#[test]
fn what_comes_waits_for_buffers() {
    let mut cable = cable();
    cable.sends(&frame(100));
    cable.sends(&frame(3000));
    cable.offers(1, 1536);
    assert_eq!(cable.driver_receives(0, 1536), frame(100));
    cable.offers(1, 1536);
    cable.driver.paused(|driver| assert_eq!(driver.unanswered(RECEIVES), 1, "one is too little"));
    cable.driver.add(RECEIVES, &[(DATA + 1536, 1536, true)]);
    cable.driver.kick(RECEIVES);
    assert_eq!(cable.driver_receives(0, 1536), frame(3000));
}

#[test]
fn a_driver_that_does_not_merge_gets_what_fits_into_one_buffer() {
    let (net, other) = card();
    let mut driver = Driver::new(Box::new(net));
    let all = driver.offered_features();
    driver.init_with(all & !(1 << net::VIRTIO_NET_F_MRG_RXBUF));
    let mut cable = Cable { driver, other };
    cable.offers(2, 1536);
    for len in [1524, 1525, 9000, 60] {
        cable.sends(&frame(len));
    }
    assert_eq!(cable.driver_receives(0, 1536), frame(1524));
    assert_eq!(cable.driver_receives(1, 1536), frame(60), "the two that do not fit are lost");
}

#[test]
fn a_pause_in_the_middle_of_a_frame_loses_nothing() {
    let mut cable = cable();
    cable.offers(4, 1536);
    let whole = frame(4000);
    cable.other.write_all(&4000u32.to_be_bytes()).unwrap();
    for part in whole.chunks(1700) {
        cable.driver.paused(|_| {});
        cable.other.write_all(part).unwrap();
        cable.driver.wait_until("the part is read", |_| true);
    }
    assert_eq!(cable.driver_receives(0, 1536), whole);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_loses_that_frame_only() {
    let mut cable = cable();
    cable.offers(4, 1536);
    cable.other.write_all(&4000u32.to_be_bytes()).unwrap();
    cable.other.write_all(&frame(4000)[..1000]).unwrap();
    // The other way the wire is full in the middle of a frame.
    for _ in 0..10 {
        cable.driver_sends(&frame(65_000));
    }
    cable.driver.paused(|driver| assert_ne!(driver.unanswered(SENDS), 0, "the wire is not full"));
    cable.driver.init();
    cable.other.write_all(&frame(4000)[1000..]).unwrap();
    cable.sends(&frame(77));
    cable.offers(4, 1536);
    assert_eq!(cable.driver_receives(0, 1536), frame(77));
    cable.driver_sends(&frame(88));
    let mut lengths = Vec::new();
    while lengths.last() != Some(&88) {
        let frame_in = cable.receives();
        lengths.push(frame_in.len());
        if frame_in.len() == 88 {
            assert_eq!(frame_in, frame(88));
        }
    }
    assert!(lengths[..lengths.len() - 1].iter().all(|len| *len == 65_000), "{lengths:?}");
}

#[test]
fn a_full_wire_holds_frames_back_and_loses_none() {
    let mut cable = cable();
    let mut sent = 0;
    while sent < 200 {
        cable.driver_sends(&frame(30_000));
        sent += 1;
        let unanswered = cable.driver.unanswered(SENDS);
        if cable.driver.used_index(SENDS).wrapping_add(20) < sent {
            break;
        }
        assert!(unanswered < 250, "the wire is never full");
    }
    for _ in 0..sent {
        assert_eq!(cable.receives(), frame(30_000));
        cable.driver.wait_used(SENDS);
    }
}

#[test]
fn frames_that_are_none_are_dropped() {
    let mut cable = cable();
    for len in [0, 13, 65_536] {
        cable.driver_sends(&frame(len));
        cable.driver.wait_used(SENDS);
    }
    cable.driver.write(OUT, &[0; 5]);
    cable.driver.add(SENDS, &[(OUT, 5, false)]);
    cable.driver.kick(SENDS);
    cable.driver.wait_used(SENDS);
    cable.driver_sends(&frame(60));
    assert_eq!(cable.receives().len(), 60);
}

#[test]
fn the_link_goes_down_when_the_other_end_is_gone_or_speaks_nonsense() {
    let nonsense: [fn(&mut Cable); 5] = [
        |cable| cable.other.shutdown(std::net::Shutdown::Both).unwrap(),
        |cable| cable.other.write_all(&[0, 0, 0, 13]).unwrap(),
        |cable| cable.other.write_all(&[0, 1, 0, 0]).unwrap(),
        |cable| cable.other.write_all(&[0xff; 4]).unwrap(),
        // While there is no room for what comes.
        |cable| {
            for _ in 0..3 {
                cable.sends(&frame(60));
            }
            cable.driver_receives(0, 1536);
            cable.driver_receives(1, 1536);
            cable.other.shutdown(std::net::Shutdown::Both).unwrap();
        },
    ];
    for break_it in nonsense {
        let mut cable = cable();
        cable.offers(2, 1536);
        let status = |driver: &mut Driver| driver.get(0x100 + 4) >> 16 & 1; // after the address
        assert_eq!(status(&mut cable.driver), 1);
        break_it(&mut cable);
        cable.driver.wait_until("the link to go down", |driver| {
            status(driver) == 0 && driver.interrupt_status() & CONFIG_CHANGE != 0
        });
        // What is sent is lost, and a new driver finds it like that.
        cable.driver_sends(&frame(60));
        cable.driver.wait_used(SENDS);
        cable.driver.init();
        assert_eq!(status(&mut cable.driver), 0);
        cable.offers(1, 1536);
        cable.driver_sends(&frame(60));
        cable.driver.wait_used(SENDS);
    }
}

#[test]
fn a_card_of_a_machine_that_is_built_again_has_a_link_that_is_down_as_before() {
    let (other, end) = UnixStream::pair().unwrap();
    let wire = Wire::stream(end.into()).unwrap();
    let card = || Box::new(Net::new(wire.clone(), 0, Mac([2, 0, 0, 0, 0, 1]), None));
    let is_up = |driver: &mut Driver| driver.get(0x100 + 4) >> 16 & 1 == 1;
    let mut driver = Driver::new(card());
    driver.init();
    assert!(is_up(&mut driver));
    drop(other);
    driver.wait_until("the link to go down", |driver| !is_up(driver));
    drop(driver);
    assert!(!is_up(&mut Driver::new(card())));
}

#[test]
fn frames_are_limited_each_way() {
    let bucket = Bucket { size: 150, one_time_burst: None, refill_time: 1 << 40 };
    let limit = RateLimit { bandwidth: Some(bucket), ops: None };
    let (mut net, other) = card();
    net.rx.limiter = Limiter::new(&limit, Instant::now());
    net.tx.limiter = Limiter::new(&limit, Instant::now());
    let mut driver = Driver::new(Box::new(net));
    driver.init();
    let mut cable = Cable { driver, other };
    cable.offers(4, 1536);
    for _ in 0..4 {
        cable.sends(&frame(60));
        cable.driver_sends(&frame(60));
    }
    for index in 0..2 {
        assert_eq!(cable.driver_receives(index, 1536), frame(60));
        assert_eq!(cable.receives(), frame(60));
        cable.driver.wait_used(SENDS);
    }
    cable.driver.paused(|driver| {
        assert_eq!((driver.unanswered(SENDS), driver.used_index(RECEIVES)), (2, 2));
    });
    cable.other.set_nonblocking(true).unwrap();
    assert_eq!(cable.other.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_driver_that_changes_a_frame_which_is_half_sent_harms_its_own_frames_only() {
    let mut cable = cable();
    let mut sent = 0;
    while cable.driver.used_index(SENDS) == sent {
        cable.driver_sends(&frame(65_000));
        sent += 1;
        cable.driver.paused(|_| {});
        if cable.driver.used_index(SENDS) < sent {
            break;
        }
    }
    // The waiting chain becomes shorter.
    cable.driver.paused(|driver| {
        for index in 0..256 {
            driver.set_desc(super::test_driver::rings(SENDS)[0], index, OUT, 100, 0, 0);
        }
    });
    cable.driver_sends(&frame(99));
    let mut last = Vec::new();
    while last.len() != 99 {
        last = cable.receives();
        assert!([65_000, 88, 99].contains(&last.len()), "{}", last.len());
    }
    assert_eq!(last, frame(99));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// What comes harms nobody, and the driver has its device after a reset.
    #[test]
    fn any_bytes_may_come(bytes in prop::collection::vec(any::<u8>(), 0..400), length in 0u32..70_000) {
        let mut cable = cable();
        cable.offers(8, 1536);
        let _ = cable.other.write_all(&length.to_be_bytes());
        let _ = cable.other.write_all(&bytes);
        cable.driver.paused(|_| {});
        cable.driver.init();
        cable.driver_sends(&frame(60));
        cable.driver.wait_used(SENDS);
    }

    /// Whatever the sizes of frames and buffers, and wherever the stream is cut, frames arrive whole and in order.
    #[test]
    fn a_stream_of_frames_arrives_whole(
        frames in prop::collection::vec(14usize..3000, 1..6),
        buffers in 80u32..2000,
        cut in 100usize..4000,
        pauses: bool,
    ) {
        let mut cable = cable();
        let mut bytes = Vec::new();
        for len in &frames {
            bytes.extend((*len as u32).to_be_bytes());
            bytes.extend(frame(*len));
        }
        let mut at = 0;
        let mut written = bytes.chunks(cut);
        let mut rest = || written.next();
        for len in &frames {
            let needed = (HEADER + len).div_ceil(buffers as usize) as u64;
            let seen = cable.driver.used_index(RECEIVES);
            for index in 0..needed {
                let place = (at + index) % 128;
                cable.driver.add(RECEIVES, &[(DATA + place * u64::from(buffers), buffers, true)]);
            }
            cable.driver.kick(RECEIVES);
            while cable.driver.used_index(RECEIVES) == seen {
                if let Some(part) = rest() {
                    cable.other.write_all(part).unwrap();
                }
                if pauses {
                    cable.driver.paused(|_| {});
                }
            }
            let mut whole = Vec::new();
            for index in 0..needed {
                let (_, written) = cable.driver.wait_used(RECEIVES);
                let place = (at + index) % 128;
                whole.extend(cable.driver.read(DATA + place * u64::from(buffers), written as usize));
            }
            at += needed;
            prop_assert_eq!(&whole[HEADER..], &frame(*len)[..]);
        }
    }
}

//! Many requests in flight at a time: each is completed once, in any order, with what it was to do.

use std::collections::HashMap;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{Disk, SECTORS, header, pattern, range};
use crate::config::Aio;
use crate::virtio::test_driver::DATA;

/// Most sectors of a request.
const MOST: u64 = 8;
/// Room for a request: its header, its data, its status.
const ROOM: u64 = 0x2000;

#[derive(Clone, Debug)]
struct Request {
    /// VIRTIO_BLK_T_*.
    kind: u32,
    at: u64,
    count: u64,
    /// Where in its room the data starts: aligned, as O_DIRECT wants it, or not.
    start: u64,
}

/// What happens while a batch is in flight.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    Pause,
    Reset,
}

impl Request {
    fn bytes(&self) -> std::ops::Range<usize> {
        self.at as usize * 512..(self.at + self.count) as usize * 512
    }

    fn writes(&self) -> bool {
        matches!(self.kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_WRITE_ZEROES)
    }

    /// Whether the order of the two makes a difference.
    fn depends_on(&self, other: &Self) -> bool {
        let overlap = self.at < other.at + other.count && other.at < self.at + self.count;
        overlap && (self.writes() || other.writes())
    }

    /// What is read there after it, if that has succeeded.
    fn becomes(&self, seed: usize) -> Option<Vec<u8>> {
        let len = self.bytes().len();
        match self.kind {
            VIRTIO_BLK_T_OUT => Some(pattern(len, seed)),
            VIRTIO_BLK_T_WRITE_ZEROES => Some(vec![0; len]),
            _ => None,
        }
    }

    /// Makes it available in the room with the index `index`; returns the head of its chain.
    fn offer(&self, disk: &mut Disk, index: usize, seed: usize) -> u16 {
        let room = DATA + index as u64 * ROOM;
        let (data, status) = (room + self.start, room + ROOM - 1);
        let sent = match self.kind {
            VIRTIO_BLK_T_OUT => pattern(self.bytes().len(), seed),
            VIRTIO_BLK_T_WRITE_ZEROES => range(self.at, self.count as u32, 0),
            _ => Vec::new(),
        };
        let sector = if self.kind == VIRTIO_BLK_T_WRITE_ZEROES { 0 } else { self.at };
        disk.driver.write(room, &header(self.kind, sector));
        disk.driver.write(data, &sent);
        disk.driver.write(status, &[0xee]);
        let wanted = if self.kind == VIRTIO_BLK_T_IN { self.bytes().len() as u32 } else { 0 };
        let mut buffers =
            vec![(room, 16, false), (data, sent.len() as u32, false), (data, wanted, true)];
        buffers.push((status, 1, true));
        buffers.retain(|(_, len, _)| *len > 0);
        disk.driver.add(0, &buffers)
    }

    /// Checks its response, and what it has read of `model`.
    fn check(&self, disk: &Disk, index: usize, written: u32, model: &[u8]) {
        let room = DATA + index as u64 * ROOM;
        assert_eq!(u32::from(disk.driver.read(room + ROOM - 1, 1)[0]), VIRTIO_BLK_S_OK, "{self:?}");
        let expected = if self.kind == VIRTIO_BLK_T_IN { &model[self.bytes()] } else { &[] };
        assert_eq!(written as usize, expected.len() + 1, "{self:?}");
        assert!(disk.driver.read(room + self.start, expected.len()) == expected, "{self:?}");
    }
}

fn request() -> impl Strategy<Value = Request> {
    let kind = prop_oneof![
        8 => any::<bool>().prop_map(|reads| if reads { VIRTIO_BLK_T_IN } else { VIRTIO_BLK_T_OUT }),
        1 => any::<bool>()
            .prop_map(|zeroes| if zeroes { VIRTIO_BLK_T_WRITE_ZEROES } else { VIRTIO_BLK_T_FLUSH }),
    ];
    (kind, 0..=SECTORS - MOST, 1..=MOST, any::<bool>()).prop_map(|(kind, at, count, aligned)| {
        let count = if kind == VIRTIO_BLK_T_FLUSH { 0 } else { count };
        let at = if kind == VIRTIO_BLK_T_FLUSH { 0 } else { at };
        Request { kind, at, count, start: if aligned { 0x200 } else { 0x203 } }
    })
}

/// Requests of which none depends on another.
fn batch() -> impl Strategy<Value = Vec<Request>> {
    proptest::collection::vec(request(), 1..48).prop_map(|all| {
        let mut apart: Vec<Request> = Vec::new();
        for request in all {
            if !apart.iter().any(|other| request.depends_on(other)) {
                apart.push(request);
            }
        }
        apart
    })
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        4 => any::<()>().prop_map(|()| Meanwhile::Nothing),
        1 => any::<()>().prop_map(|()| Meanwhile::Pause),
        1 => any::<()>().prop_map(|()| Meanwhile::Reset),
    ]
}

/// Sends `batch`, with a kick for all or, if `kicks`, one for each, and applies it to `model`.
fn send(
    batch: &[Request],
    kicks: bool,
    meanwhile: Meanwhile,
    disk: &mut Disk,
    model: &mut Vec<u8>,
) {
    let seed = |index: usize| index * 31 + model[0] as usize;
    let seeds: Vec<_> = (0..batch.len()).map(seed).collect();
    let mut heads = HashMap::new();
    for (index, request) in batch.iter().enumerate() {
        heads.insert(request.offer(disk, index, seeds[index]), index);
        if kicks {
            disk.driver.kick(0);
        }
    }
    disk.driver.kick(0);
    match meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::Pause => disk.driver.paused(|_| {}),
        Meanwhile::Reset => {
            disk.driver.init();
            return *model = after_reset(batch, &seeds, disk, model);
        }
    }
    for _ in batch {
        let (head, written) = disk.driver.wait_used(0);
        let index = heads.remove(&head).expect("a request that is completed once");
        batch[index].check(disk, index, written, model);
    }
    assert_eq!(disk.driver.unanswered(0), 0);
    for (request, seed) in batch.iter().zip(seeds) {
        if let Some(bytes) = request.becomes(seed) {
            model[request.bytes()].copy_from_slice(&bytes);
        }
    }
}

/// The contents after a reset, in which each sector of a write is written or not.
fn after_reset(batch: &[Request], seeds: &[usize], disk: &mut Disk, old: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    for (request, seed) in batch.iter().zip(seeds) {
        if let Some(bytes) = request.becomes(*seed) {
            new[request.bytes()].copy_from_slice(&bytes);
        }
    }
    let found = disk.read(0, old.len()).1;
    for ((found, old), new) in found.chunks(512).zip(old.chunks(512)).zip(new.chunks(512)) {
        assert!(found == old || found == new, "a sector is neither old nor new");
    }
    found
}

fn compare(open: impl Fn() -> Option<Disk>, base_changes: bool) {
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let batches = proptest::collection::vec((batch(), any::<bool>(), meanwhile()), 1..6);
    let run = TestRunner::new(config).run(&batches, |batches| {
        let Some(mut disk) = open() else { return Ok(()) };
        let before = disk.contents();
        let mut model = before.clone();
        for (batch, kicks, meanwhile) in batches {
            send(&batch, kicks, meanwhile, &mut disk, &mut model);
        }
        assert!(disk.read(0, model.len()) == (VIRTIO_BLK_S_OK, model.clone()), "what is read");
        assert!(disk.contents() == if base_changes { model } else { before }, "the file");
        Ok(())
    });
    run.unwrap();
}

#[test]
fn by_io_uring() {
    compare(|| Disk::with(Aio::IoUring), true);
}

#[test]
fn by_threads() {
    compare(|| Disk::with(Aio::Threads), true);
}

#[test]
fn around_the_page_cache() {
    if Disk::direct().is_some() {
        compare(Disk::direct, true);
    }
}

#[test]
fn below_a_layer_by_io_uring() {
    compare(|| Disk::below_layer(Aio::IoUring), false);
}

#[test]
fn below_a_layer_by_threads() {
    compare(|| Disk::below_layer(Aio::Threads), false);
}

//! Many requests in flight at a time: each is completed once, in any order, with what it was to do or, if the host could
//! not do it, an error.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vmm_sys_util::tempfile::TempFile;

use super::{Disk, SECTORS, header, pattern, range};
use crate::config::Aio;
use crate::engine::Engine;
use crate::engine::faulty::Failures;
use crate::overlay::Layer;
use crate::virtio::block::Block;
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

    /// Checks its response, and what it has read of `model`; whether it has succeeded.
    fn check(&self, disk: &Disk, index: usize, written: u32, model: &[u8]) -> bool {
        let room = DATA + index as u64 * ROOM;
        let status = u32::from(disk.driver.read(room + ROOM - 1, 1)[0]);
        if status == VIRTIO_BLK_S_IOERR {
            assert_eq!(written, u32::from(self.kind != VIRTIO_BLK_T_IN), "{self:?}");
            return false;
        }
        assert_eq!(status, VIRTIO_BLK_S_OK, "{self:?}");
        let expected = if self.kind == VIRTIO_BLK_T_IN { &model[self.bytes()] } else { &[] };
        assert_eq!(written as usize, expected.len() + 1, "{self:?}");
        assert!(disk.driver.read(room + self.start, expected.len()) == expected, "{self:?}");
        true
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

/// A disk, and what it has to contain.
struct Bench {
    disk: Disk,
    model: Vec<u8>,
    /// What the disk's host has let fail; nothing may fail without it.
    failures: Option<Arc<Failures>>,
}

impl Bench {
    /// Transfers and flushes that the host has let fail.
    fn failed(&self) -> [usize; 2] {
        let failures = self.failures.as_ref();
        let failed =
            |f: &Arc<Failures>| [&f.transfers, &f.flushes].map(|n| n.load(Ordering::SeqCst));
        failures.map_or([0; 2], failed)
    }

    fn contents(&mut self) -> Vec<u8> {
        loop {
            let (status, found) = self.disk.read(0, self.model.len());
            if status == VIRTIO_BLK_S_OK {
                return found;
            }
            assert!(self.failures.is_some(), "a read has failed");
        }
    }

    /// Sends `batch`, with a kick for all or, if `kicks`, one for each, and applies it to the model.
    fn send(&mut self, batch: &[Request], kicks: bool, meanwhile: Meanwhile) {
        let before = self.failed();
        let disk = &mut self.disk;
        let seed = |index: usize| index * 31 + self.model[0] as usize;
        let seeded: Vec<_> = batch.iter().zip((0..).map(seed)).collect();
        let mut heads = HashMap::new();
        for (index, (request, seed)) in seeded.iter().enumerate() {
            heads.insert(request.offer(disk, index, *seed), index);
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
                return self.may_have_done(&seeded);
            }
        }
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for _ in batch {
            let (head, written) = disk.driver.wait_used(0);
            let index = heads.remove(&head).expect("a request that is completed once");
            let is_ok = batch[index].check(disk, index, written, &self.model);
            if is_ok { done.push(seeded[index]) } else { failed.push(seeded[index]) }
        }
        assert_eq!(disk.driver.unanswered(0), 0);
        self.check_failed(batch, &failed, before);
        self.model = after(&self.model, &done);
        if !failed.is_empty() {
            self.may_have_done(&failed);
        }
    }

    /// The requests that failed have to be those that the host let fail since it was `before`.
    fn check_failed(&self, batch: &[Request], failed: &[(&Request, usize)], before: [usize; 2]) {
        let now = self.failed();
        let is_flush = |request: &&Request| request.kind == VIRTIO_BLK_T_FLUSH;
        let sent = batch.iter().filter(is_flush).count();
        let flushes = failed.iter().map(|(request, _)| *request).filter(is_flush).count();
        assert_eq!(failed.len() - flushes, now[0] - before[0], "reads and writes that failed");
        // After one that failed none succeeds, also of those that were in flight with it.
        match [before[1], now[1]] {
            [0, 0] => assert_eq!(flushes, 0),
            [0, new] => assert!(flushes >= new),
            _ => assert_eq!(flushes, sent, "an earlier flush has failed"),
        }
    }

    /// Each sector that these would have written is written or not.
    fn may_have_done(&mut self, requests: &[(&Request, usize)]) {
        let (found, new) = (self.contents(), after(&self.model, requests));
        for ((found, old), new) in
            found.chunks(512).zip(self.model.chunks(512)).zip(new.chunks(512))
        {
            assert!(found == old || found == new, "a sector is neither old nor new");
        }
        self.model = found;
    }
}

/// What is read of a disk that contains `old` after these requests, each with its seed.
fn after(old: &[u8], requests: &[(&Request, usize)]) -> Vec<u8> {
    let mut new = old.to_vec();
    for (request, seed) in requests {
        if let Some(bytes) = request.becomes(*seed) {
            new[request.bytes()].copy_from_slice(&bytes);
        }
    }
    new
}

fn compare(open: impl Fn() -> Option<Disk>, base_changes: bool) {
    compare_on(|_| Some((open()?, None)), base_changes);
}

/// The same on the host that `open` makes of a seed, with a disk and what fails.
fn compare_on(
    open: impl Fn(u64) -> Option<(Disk, Option<Arc<Failures>>)>,
    base_changes: bool,
) -> [usize; 2] {
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let batches = proptest::collection::vec((batch(), any::<bool>(), meanwhile()), 1..6);
    let total = Cell::new([0; 2]);
    let run = TestRunner::new(config).run(&(any::<u64>(), batches), |(seed, batches)| {
        let Some((disk, failures)) = open(seed) else { return Ok(()) };
        let before = disk.contents();
        let mut bench = Bench { disk, model: before.clone(), failures };
        for (batch, kicks, meanwhile) in batches {
            bench.send(&batch, kicks, meanwhile);
        }
        assert!(bench.contents() == bench.model, "what is read");
        let file = if base_changes { &bench.model } else { &before };
        assert!(bench.disk.contents() == *file, "the file");
        let ([a, b], [c, d]) = (total.get(), bench.failed());
        total.set([a + c, b + d]);
        Ok(())
    });
    run.unwrap();
    total.get()
}

/// A disk on a host that does its jobs in any order, in parts, late, or not at all.
fn on_a_bad_host(seed: u64, has_layer: bool) -> Option<(Disk, Option<Arc<Failures>>)> {
    let (file, mut image) = Disk::image_with_jobs_for_all(Aio::Threads)?;
    if has_layer {
        let layer = TempFile::new().unwrap().into_file();
        image.set_layer(|base, len| Layer::temporary(layer, base, len)).unwrap();
    }
    let failures = Arc::<Failures>::default();
    let mut block = Block::new(image, 7, None, 1).unwrap();
    block.set_engine(Engine::faulty(seed, failures.clone()).unwrap());
    Some((Disk::of_block(file, block), Some(failures)))
}

#[test]
fn on_a_host_that_fails() {
    let failed = compare_on(|seed| on_a_bad_host(seed, false), true);
    assert!(failed[0] > 0 && failed[1] > 0, "{failed:?} have failed");
}

#[test]
fn below_a_layer_on_a_host_that_fails() {
    let failed = compare_on(|seed| on_a_bad_host(seed, true), false);
    assert!(failed[0] > 0, "{failed:?} have failed");
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

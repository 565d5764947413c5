//! A disk behaves like a plain array of bytes, whatever else its driver does.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::{Disk, SECTORS, header, pattern, range};
use crate::virtio::test_driver::{DATA, INDIRECT, NEXT, RAM_SIZE, WRITE, rings};

/// Sectors are counted in blocks of the disk's own size, `SPAN` to a disk.
const SPAN: u64 = 16;

#[derive(Clone, Debug)]
enum Request {
    Read {
        at: u64,
        count: u64,
        cuts: Vec<usize>,
    },
    Write {
        at: u64,
        count: u64,
        cuts: Vec<usize>,
        seed: usize,
    },
    Zero {
        kind: u32,
        ranges: Vec<(u64, u64)>,
    },
    Flush,
    Pause,
    Reset,
    /// A write, and a pause or a reset before its response.
    CutShort {
        at: u64,
        count: u64,
        seed: usize,
        reset: bool,
    },
    /// A write that the disk must refuse, by a case of `refused`.
    Refused(&'static str),
    /// A write in a chain that cannot be followed, by a case of `break_chain`.
    Broken(&'static str),
}

const REFUSED: [&str; 6] =
    ["past the end", "across the end", "near 2^64", "odd", "no such type", "zero past the end"];
const BROKEN: [&str; 8] = [
    "loop",
    "next out of range",
    "head out of range",
    "past RAM",
    "no status",
    "status first",
    "indirect in indirect",
    "available index far ahead",
];

fn request() -> impl Strategy<Value = Request> {
    let place = || (0..SPAN).prop_flat_map(|at| (Just(at), 0..=(SPAN - at).min(6)));
    let cuts = || proptest::collection::vec(any::<usize>(), 0..8);
    let kind = prop_oneof![Just(VIRTIO_BLK_T_DISCARD), Just(VIRTIO_BLK_T_WRITE_ZEROES)];
    prop_oneof![
        4 => (place(), cuts()).prop_map(|((at, count), cuts)| Request::Read { at, count, cuts }),
        4 => (place(), cuts(), any::<u8>()).prop_map(|((at, count), cuts, seed)| {
            Request::Write { at, count, cuts, seed: seed.into() }
        }),
        1 => (kind, proptest::collection::vec(place(), 0..4))
            .prop_map(|(kind, ranges)| Request::Zero { kind, ranges }),
        1 => Just(Request::Flush),
        1 => Just(Request::Pause),
        1 => Just(Request::Reset),
        1 => (place(), any::<u8>(), any::<bool>()).prop_map(|((at, count), seed, reset)| {
            Request::CutShort { at, count, seed: seed.into(), reset }
        }),
        1 => select(&REFUSED[..]).prop_map(Request::Refused),
        1 => select(&BROKEN[..]).prop_map(Request::Broken),
    ]
}

/// Sends `request` to `disk`, whose blocks have `block` bytes, and applies it to `model`.
fn step(request: Request, disk: &mut Disk, model: &mut [u8], block: u64) {
    let bytes = |at: u64, count: u64| (at * block) as usize..((at + count) * block) as usize;
    let sector = |at: u64| at * block / 512;
    match request {
        Request::Read { at, count, cuts } => {
            let expected = &model[bytes(at, count)];
            let answer =
                disk.ask_in_pieces(VIRTIO_BLK_T_IN, sector(at), &[], expected.len(), &cuts);
            assert_eq!(answer, (VIRTIO_BLK_S_OK, expected.to_vec()));
        }
        Request::Write { at, count, cuts, seed } => {
            let data = pattern((count * block) as usize, seed);
            let answer = disk.ask_in_pieces(VIRTIO_BLK_T_OUT, sector(at), &data, 0, &cuts);
            assert_eq!(answer.0, VIRTIO_BLK_S_OK);
            model[bytes(at, count)].copy_from_slice(&data);
        }
        Request::Zero { kind, ranges } => {
            let to_bytes = |(at, count)| range(sector(at), sector(count) as u32, 0);
            let data: Vec<_> = ranges.iter().copied().flat_map(to_bytes).collect();
            assert_eq!(disk.ask(kind, 0, &data, 0).0, VIRTIO_BLK_S_OK);
            ranges.into_iter().for_each(|(at, count)| model[bytes(at, count)].fill(0));
        }
        Request::Flush => {
            assert_eq!(disk.ask(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, VIRTIO_BLK_S_OK);
        }
        Request::Pause => disk.driver.paused(|_| {}),
        Request::Reset => disk.driver.init(),
        Request::CutShort { at, count, seed, reset } => {
            let data = pattern((count * block) as usize, seed);
            cut_short(disk, sector(at), &data, reset, &mut model[bytes(at, count)]);
        }
        Request::Refused(how) => refused(disk, how),
        Request::Broken(how) => {
            break_chain(disk, how);
            disk.driver.kick(0);
            disk.driver.wait_needs_reset();
            disk.driver.init();
        }
    }
}

/// After a pause the write is complete; after a reset each of its blocks is written or not.
fn cut_short(disk: &mut Disk, sector: u64, data: &[u8], reset: bool, model: &mut [u8]) {
    let answers = disk.offer(VIRTIO_BLK_T_OUT, sector, data, 0, &[]);
    disk.driver.kick(0);
    if !reset {
        disk.driver.paused(|_| {});
        assert_eq!(disk.answer(&answers).0, VIRTIO_BLK_S_OK);
        return model.copy_from_slice(data);
    }
    disk.driver.init();
    let start = sector as usize * 512;
    let found = &disk.contents()[start..start + data.len()];
    for (at, found) in (0..data.len()).step_by(512).zip(found.chunks(512)) {
        let block = at..at + 512;
        assert!(found == &data[block.clone()] || found == &model[block], "neither old nor new");
    }
    model.copy_from_slice(found);
}

/// Sends a write that has to fail.
fn refused(disk: &mut Disk, how: &str) {
    let (kind, sector, len) = match how {
        "past the end" => (VIRTIO_BLK_T_OUT, SECTORS, 512),
        "across the end" => (VIRTIO_BLK_T_OUT, SECTORS - 1, 1024),
        "near 2^64" => (VIRTIO_BLK_T_OUT, u64::MAX / 512, 512),
        "odd" => (VIRTIO_BLK_T_OUT, 0, 511),
        "no such type" => (99, 0, 512),
        _ => (VIRTIO_BLK_T_WRITE_ZEROES, 0, 0),
    };
    let data = if len == 0 { range(SECTORS - 1, 2, 0) } else { pattern(len, 77) };
    assert_ne!(disk.ask(kind, sector, &data, 0).0, VIRTIO_BLK_S_OK, "{how}");
}

/// Offers a write of the first sector in an invalid chain.
fn break_chain(disk: &mut Disk, how: &str) {
    let [table, _, _, indirect] = rings(0);
    let driver = &mut disk.driver;
    driver.write(DATA, &[&header(VIRTIO_BLK_T_OUT, 0)[..], &pattern(512, 99)].concat());
    let status = (DATA + 0x1000, 1);
    // The request in one piece, and its status: valid but for the change below.
    let request = |index, flags, next| driver.set_desc(table, index, DATA, 528, flags, next);
    let answer =
        |index, flags, next| driver.set_desc(table, index, status.0, status.1, flags, next);
    request(0, NEXT, 1);
    answer(1, WRITE, 0);
    let mut head = 0;
    match how {
        "loop" => answer(1, WRITE | NEXT, 1),
        "next out of range" => answer(1, WRITE | NEXT, u16::MAX),
        "head out of range" => head = 256,
        "past RAM" => driver.set_desc(table, 0, RAM_SIZE - 16, 528, NEXT, 1),
        "no status" => request(0, 0, 0),
        "status first" => {
            answer(0, WRITE | NEXT, 1);
            request(1, 0, 0);
        }
        "indirect in indirect" => {
            driver.set_desc(table, 0, indirect, 32, INDIRECT, 0);
            driver.set_desc(indirect, 0, indirect, 32, INDIRECT, 0);
        }
        _ => return driver.set_avail_index(0, u16::MAX / 2),
    }
    driver.offer(0, head);
}

fn compare(cases: u32, open: fn() -> Option<Disk>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let requests = proptest::collection::vec(request(), 1..40);
    let run = TestRunner::new(config).run(&requests, |requests| {
        let Some(mut disk) = open() else { return Ok(()) };
        let block = u64::from(disk.driver.get(VIRTIO_MMIO_CONFIG + 20));
        assert!(SPAN * block <= SECTORS * 512);
        let mut model = disk.contents();
        requests.into_iter().for_each(|request| step(request, &mut disk, &mut model, block));
        assert!(disk.contents() == model, "the file is not what was written");
        Ok(())
    });
    run.unwrap();
}

#[test]
fn any_sequence_of_requests_leaves_the_file_as_it_should_be() {
    compare(60, || Some(Disk::new()));
}

#[test]
fn any_sequence_of_requests_leaves_a_direct_file_as_it_should_be() {
    if Disk::direct().is_some() {
        compare(25, Disk::direct);
    }
}

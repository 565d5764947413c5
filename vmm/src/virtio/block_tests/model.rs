//! A disk behaves like a plain array of bytes.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::{Disk, SECTORS, pattern, range};

/// Sectors are counted in blocks of the disk's own size, `SPAN` to a disk.
const SPAN: u64 = 16;

#[derive(Clone, Debug)]
enum Request {
    Read { at: u64, count: u64, cuts: Vec<usize> },
    Write { at: u64, count: u64, cuts: Vec<usize>, seed: usize },
    Zero { kind: u32, ranges: Vec<(u64, u64)> },
    Flush,
    Pause,
    Reset,
}

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
    ]
}

/// Sends `request` to `disk`, whose blocks have `block` bytes, and does the same to `model`.
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
    }
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

//! Random requests, ends and crashes, against an array of bytes.

use std::os::unix::fs::FileExt;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use super::{BITMAP, BLOCK, Files, LEN, crash, pattern};
use crate::overlay::Layer;

#[derive(Clone, Debug)]
enum Step {
    Read { sector: usize, count: usize },
    Write { sector: usize, count: usize, seed: u8 },
    Zero { sector: usize, count: usize },
    Flush,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = LEN / 512;
    let place = move || {
        (0..=sectors).prop_flat_map(move |sector| (Just(sector), 0..=(sectors - sector).min(30)))
    };
    prop_oneof![
        4 => place().prop_map(|(sector, count)| Step::Read { sector, count }),
        4 => (place(), any::<u8>())
            .prop_map(|((sector, count), seed)| Step::Write { sector, count, seed }),
        2 => place().prop_map(|(sector, count)| Step::Zero { sector, count }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// The expected contents of the disk.
struct Model {
    bytes: Vec<u8>,
    /// The blocks that were written to, and those of them that survive a crash.
    ours: [bool; LEN.div_ceil(BLOCK)],
    safe: [bool; LEN.div_ceil(BLOCK)],
}

impl Model {
    fn change(&mut self, sector: usize, count: usize, change: impl FnOnce(&mut [u8])) {
        let bytes = sector * 512..(sector + count) * 512;
        change(&mut self.bytes[bytes.clone()]);
        if !bytes.is_empty() {
            self.ours[bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)].fill(true);
        }
    }

    fn flush(&mut self) {
        self.safe = self.ours;
    }

    /// Blocks that were not flushed since they were added to the layer are the base's again.
    fn crash(&mut self) {
        let base = pattern(LEN, 0);
        for (block, safe) in self.safe.iter().enumerate().filter(|(_, safe)| !**safe) {
            let bytes = block * BLOCK..LEN.min((block + 1) * BLOCK);
            self.bytes[bytes.clone()].copy_from_slice(&base[bytes]);
            self.ours[block] = *safe;
        }
    }
}

fn take(step: Step, files: &Files, layer: Layer, model: &mut Model) -> Layer {
    let mut layer = layer;
    match step {
        Step::Read { sector, count } => {
            let found = files.read(&layer, sector * 512, count * 512);
            assert_eq!(found, model.bytes[sector * 512..(sector + count) * 512]);
        }
        Step::Write { sector, count, seed } => {
            let data = pattern(count * 512, seed.into());
            files.write(&mut layer, sector * 512, &data);
            model.change(sector, count, |bytes| bytes.copy_from_slice(&data));
        }
        Step::Zero { sector, count } => {
            // DiskImage makes no empty requests.
            if count > 0 {
                files.zero(&mut layer, sector * 512, count * 512);
                model.change(sector, count, |bytes| bytes.fill(0));
            }
        }
        Step::Flush => {
            layer.sync().unwrap();
            model.flush();
        }
        Step::Reopen => {
            drop(layer);
            model.flush();
            layer = files.open().unwrap();
        }
        Step::Crash => {
            crash(layer);
            model.crash();
            layer = files.open().unwrap();
        }
    }
    layer
}

#[test]
fn any_sequence_of_requests_ends_and_crashes_leaves_the_disk_as_it_should_be() {
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&proptest::collection::vec(step(), 1..60), |steps| {
        let files = Files::new(LEN);
        let bytes = pattern(LEN, 0);
        let blocks = LEN.div_ceil(BLOCK);
        assert_eq!(blocks, 11, "the last one is cut short");
        let mut model = Model { bytes, ours: [false; 11], safe: [false; 11] };
        let mut layer = files.open().unwrap();
        for step in steps {
            layer = take(step, &files, layer, &mut model);
        }
        assert!(files.read(&layer, 0, LEN) == model.bytes, "the disk is not what was written");
        let base = std::fs::read(files.base.as_path()).unwrap();
        assert!(base == pattern(LEN, 0), "the base has changed");
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_crash_in_the_middle_of_a_flush_leaves_each_block_old_or_new() {
    const PLACES: [usize; 4] = [0, 5000, 9000, 16000]; // blocks, each in a sector of its own
    let files = Files::new(20_000 * BLOCK);
    let sectors = PLACES.len() + 1;
    let bitmap = || {
        let mut bytes = vec![0; sectors * 512];
        files.layer.as_file().read_exact_at(&mut bytes, BITMAP).unwrap();
        bytes
    };
    let old = |block| files.read(&files_layer(&files), block * BLOCK, BLOCK);
    let before: Vec<_> = PLACES.into_iter().map(old).collect();
    let mut layer = files.open().unwrap();
    let empty = bitmap();
    for (seed, block) in PLACES.into_iter().enumerate() {
        files.write(&mut layer, block * BLOCK, &pattern(BLOCK, seed + 100));
    }
    assert_eq!(bitmap(), empty, "nothing is claimed before the flush");
    drop(layer);
    let full = bitmap();
    for written in 0..1 << sectors {
        let mut mixed = empty.clone();
        for sector in (0..sectors).filter(|sector| written & 1 << sector != 0) {
            mixed[sector * 512..][..512].copy_from_slice(&full[sector * 512..][..512]);
        }
        files.layer.as_file().write_all_at(&mixed, BITMAP).unwrap();
        let layer = files.open().unwrap();
        for (seed, block) in PLACES.into_iter().enumerate() {
            let is_new = written & 1 << (block / 4064) != 0;
            let expected = if is_new { &pattern(BLOCK, seed + 100) } else { &before[seed] };
            assert_eq!(&files.read(&layer, block * BLOCK, BLOCK), expected);
        }
        crash(layer);
    }
}

fn files_layer(files: &Files) -> Layer {
    files.open().unwrap()
}

//! A disk with a layer behaves like an array of bytes, whatever happens in between.

mod damage;
mod model;

use std::fs::File;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::tempfile::TempFile;

use super::{BITMAP, Layer};
use crate::memory::buffers::Buffers;
use crate::memory::{self, GuestRam};
use crate::pieces::Zero;
use crate::virtio::test_log;

const BLOCK: usize = 4096;
/// The size of the tests' disk, whose last block is partial.
const LEN: usize = 10 * BLOCK + 3 * 512;

/// A base, the file of a layer over it, and RAM to read to and write from.
struct Files {
    base: TempFile,
    layer: TempFile,
    ram: GuestRam,
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 512 + seed) as u8 | 1).collect()
}

impl Files {
    fn new(len: usize) -> Self {
        let base = TempFile::new().unwrap();
        std::fs::write(base.as_path(), pattern(len, 0)).unwrap();
        let ram = memory::of_ranges(&[(0, 1 << 20)]);
        Self { base, layer: TempFile::new().unwrap(), ram }
    }

    fn len(&self) -> u64 {
        self.base.as_file().metadata().unwrap().len()
    }

    fn open(&self) -> anyhow::Result<Layer> {
        let file = File::options().read(true).write(true).open(self.layer.as_path())?;
        Layer::kept(file, self.base.as_file(), self.len(), false)
    }

    /// Buffers of `len` bytes, in two pieces.
    fn buffers(&self, len: usize) -> Buffers<'_> {
        let mut buffers = Buffers::default();
        for (at, len) in [(0, len / 3), (len / 3, len - len / 3)] {
            for slice in self.ram.get_slices(GuestAddress(at as u64), len) {
                buffers.push(slice.unwrap());
            }
        }
        buffers
    }

    fn read(&self, layer: &Layer, offset: usize, len: usize) -> Vec<u8> {
        layer.read(self.base.as_file(), self.buffers(len), offset as u64).unwrap();
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn write(&self, layer: &mut Layer, offset: usize, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(0)).unwrap();
        layer.write(self.base.as_file(), self.buffers(bytes.len()), offset as u64).unwrap();
    }

    fn zero(&self, layer: &mut Layer, offset: usize, len: usize) {
        let range = offset as u64..(offset + len) as u64;
        layer.zero(self.base.as_file(), range, Zero::Keep).unwrap();
    }
}

/// Ends as if the process had been killed: unflushed writes are not in the file.
fn crash(layer: Layer) {
    layer.failed.store(true, std::sync::atomic::Ordering::SeqCst);
    layer.loss_logged.store(true, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn a_temporary_layer_lives_as_long_as_its_process_and_is_its_disks_own() {
    let files = Files::new(LEN);
    let open = || {
        let file = TempFile::new().unwrap().into_file();
        Layer::temporary(file, files.base.as_file(), LEN as u64).unwrap()
    };
    let first = open();
    let mut life = first.try_clone().unwrap();
    files.write(&mut life, 700, b"new");
    life.sync().unwrap();
    drop(life);
    assert_eq!(files.read(&first.try_clone().unwrap(), 700, 3), b"new", "after a reset");
    assert_eq!(files.read(&open(), 0, LEN), pattern(LEN, 0), "another disk's");
}

#[test]
fn a_layer_takes_the_space_of_what_was_written_to_it() {
    use std::os::unix::fs::MetadataExt;
    let files = Files::new(BLOCK);
    files.base.as_file().set_len(1 << 40).unwrap();
    let used = || File::open(files.layer.as_path()).unwrap().metadata().unwrap().blocks() * 512;
    let mut layer = files.open().unwrap();
    assert_eq!(layer.header.block, 32 << 10, "a disk of 1 TiB has larger blocks");
    let before = used();
    assert!(before <= 64 << 10, "an empty layer takes {before} bytes");
    files.write(&mut layer, 1 << 39, &pattern(512 << 10, 1));
    layer.sync().unwrap();
    let written = used() - before;
    assert!((512 << 10..600 << 10).contains(&written), "512 KiB take {written} bytes");
    files.zero(&mut layer, 1 << 39, 512 << 10);
    layer.sync().unwrap();
    assert!(used() - before <= 64 << 10, "zeroes take no space");
    let zeroes = files.read(&layer, 1 << 39, 512 << 10);
    assert!(zeroes.iter().all(|byte| *byte == 0));
    drop(layer);
    let large = Layer::kept(
        files.layer.as_file().try_clone().unwrap(),
        files.base.as_file(),
        (32 << 40) + 512,
        false,
    );
    let refused = format!("{:#}", large.err().unwrap());
    assert!(refused.contains("32 TiB"), "{refused}");
}

#[test]
fn a_loss_in_each_of_a_machines_lives_is_logged_once() {
    test_log::keep();
    let lost = || test_log::count("overlay: what was written last is lost");
    for kept in [true, false] {
        let files = Files::new(LEN);
        let before = lost();
        let first = match kept {
            true => files.open().unwrap(),
            false => {
                let file = TempFile::new().unwrap().into_file();
                Layer::temporary(file, files.base.as_file(), LEN as u64).unwrap()
            }
        };
        for _ in 0..3 {
            let mut life = first.try_clone().unwrap();
            files.write(&mut life, 700, b"new");
            // As a file that cannot be written any more.
            life.file = File::open("/proc/self/status").unwrap().into();
        }
        assert_eq!(lost() - before, 1);
    }
}

#[test]
fn what_cannot_be_discarded_stays_as_it_is() {
    let files = Files::new(LEN);
    let mut layer = files.open().unwrap();
    // A file without fallocate(2).
    let other = File::options().read(true).write(true).open("/proc/self/comm").unwrap();
    let own = std::mem::replace(&mut layer.file, other.into());
    let range = 0..BLOCK as u64;
    let error = layer.zero(files.base.as_file(), range, Zero::Discard).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    layer.file = own;
    assert_eq!(files.read(&layer, 0, LEN), pattern(LEN, 0));
}

#[test]
fn a_copy_of_the_file_of_a_layer_that_is_written_out_is_the_same_layer() {
    for kept in [false, true] {
        let base = TempFile::new().unwrap().into_file();
        base.set_len(1 << 20).unwrap();
        let file = TempFile::new().unwrap();
        let open = || file.as_file().try_clone().unwrap();
        let mut layer = match kept {
            true => Layer::kept(open(), &base, 1 << 20, true).unwrap(),
            false => Layer::temporary(open(), &base, 1 << 20).unwrap(),
        };
        layer.has_taken(&(0..layer.block()));
        layer.write_out().unwrap();
        let copy = TempFile::new().unwrap();
        std::fs::copy(file.as_path(), copy.as_path()).unwrap();
        let copy = Layer::temporary(copy.into_file(), &base, 1 << 20).unwrap();
        assert_eq!(copy.run(0..1 << 20), (true, copy.block()));
    }
}

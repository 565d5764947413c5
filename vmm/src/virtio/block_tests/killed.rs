//! A process that is killed while many requests are in flight takes nothing with it that its guest relies on.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};

use super::slots::{self, PART, Random, SLOTS};
use super::{Disk, LEN, SECTORS};
use crate::config::{Aio, DiskConfig, Overlay};
use crate::disk_image;
use crate::overlay::Layer;
use vmm_sys_util::tempfile::TempFile;

/// Set in a process that is to be killed: paths of its disk and its layer, its way of I/O, and the first number.
const VICTIM: &str = "TINYVMM_TEST_VICTIM";
const SECTOR: usize = 512;

/// A number that is in all of some consecutive sectors.
#[derive(Clone, Copy)]
struct Written {
    sector: usize,
    count: usize,
    number: u64,
}

enum Request {
    Write(Written),
    /// Of these writes, which were completed before.
    Flush(Vec<Written>),
}

/// Opens the disk at `path`, below the layer at `layer` if it is not empty.
fn open(path: &Path, layer: &Path, aio: Aio) -> Option<Disk> {
    let has_layer = !layer.as_os_str().is_empty();
    let overlay = has_layer.then(|| Overlay::Kept(layer.into()));
    let config = DiskConfig { aio, overlay, ..DiskConfig::new(path.into()) };
    let mut image = match disk_image::open(&config) {
        Err(error) if aio == Aio::IoUring && format!("{error:#}").contains("no io_uring") => {
            eprintln!("skipped: {error:#}");
            return None;
        }
        image => image.unwrap(),
    };
    if has_layer {
        let file = File::options().read(true).write(true).open(layer).unwrap();
        image.set_layer(|base, len| Layer::kept(file, base, len, false)).unwrap();
    }
    Some(Disk::of_image(TempFile::new().unwrap(), image))
}

/// Prints what has to stay. It does not pass through the test harness, which keeps output.
fn report(written: &[Written]) {
    let line = |w: &Written| format!("stays {} {} {}\n", w.sector, w.count, w.number);
    let lines: String = written.iter().map(line).collect();
    std::io::stdout().write_all(lines.as_bytes()).expect("who kills it is there");
}

/// What a victim does until it is killed: it writes numbers, from `number` on, and reports those that have to stay: of
/// a disk all that are written, of a layer those that are flushed.
fn write_numbers(mut disk: Disk, is_layer: bool, mut number: u64) {
    let mut random = Random::new();
    let mut busy: Vec<Option<Request>> = (0..SLOTS).map(|_| None).collect();
    let mut unflushed = Vec::new();
    loop {
        for (slot, busy) in busy.iter_mut().enumerate().filter(|(_, busy)| busy.is_none()) {
            if random.below(20) == 0 {
                slots::offer(&mut disk.driver, 0, slot, VIRTIO_BLK_T_FLUSH, 0, &[]);
                *busy = Some(Request::Flush(std::mem::take(&mut unflushed)));
                continue;
            }
            let sector = random.below(PART / SECTOR);
            let count = 1 + random.below(PART / SECTOR - sector);
            let data = number.to_le_bytes().repeat(count * SECTOR / 8);
            slots::offer(&mut disk.driver, 0, slot, VIRTIO_BLK_T_OUT, sector, &data);
            let sector = slot * PART / SECTOR + sector;
            *busy = Some(Request::Write(Written { sector, count, number }));
            number += 1;
        }
        disk.driver.kick(0);
        while let Some((slot, status)) = slots::take(&mut disk.driver, 0) {
            assert_eq!(status, VIRTIO_BLK_S_OK);
            match busy[slot].take().expect("a request that is completed once") {
                Request::Write(written) if is_layer => unflushed.push(written),
                Request::Write(written) => report(&[written]),
                Request::Flush(written) => report(&written),
            }
        }
    }
}

/// Starts a victim with `words`, kills it once it has reported some numbers, and notes in `kept` what has to stay.
fn kill_one(test: &str, words: &str, kept: &mut [u64]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    command.args([&*name, "--exact", "--nocapture"]).env(VICTIM, words);
    let mut victim = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut left = 1 + Random::new().below(500);
    // After the kill the pipe still has what was reported before.
    while let Some(Ok(line)) = lines.next() {
        let Some(fields) = line.strip_prefix("stays ") else { continue };
        let fields: Vec<u64> = fields.split(' ').map_while(|field| field.parse().ok()).collect();
        let [sector, count, number] = fields[..] else { continue };
        for kept in &mut kept[sector as usize..(sector + count) as usize] {
            *kept = number.max(*kept);
        }
        left -= usize::from(left > 0);
        if left == 0 {
            victim.kill().unwrap();
        }
    }
    let status = victim.wait().unwrap();
    assert!(status.code().is_none(), "it ended by itself: {status}");
}

/// Each sector has to have a number, in all of it, that is not older than what was `kept` of it.
fn check(disk: &mut Disk, kept: &[u64]) {
    let (status, contents) = disk.read(0, LEN);
    assert_eq!(status, VIRTIO_BLK_S_OK);
    for (index, (sector, kept)) in contents.chunks(SECTOR).zip(kept).enumerate() {
        let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks(8).all(|word| word == &sector[..8]), "sector {index} is torn");
        assert!(found >= *kept, "sector {index} has {found:#x} instead of {kept:#x}");
    }
}

fn outlives_its_process(test: &str, aio: Aio, has_layer: bool) {
    if let Ok(words) = std::env::var(VICTIM) {
        let words: Vec<_> = words.split(',').collect();
        let disk = open(words[0].as_ref(), words[1].as_ref(), aio).unwrap();
        return write_numbers(disk, has_layer, words[2].parse().unwrap());
    }
    for _ in 0..3 {
        let (file, layer) = (TempFile::new().unwrap(), TempFile::new().unwrap());
        file.as_file().set_len(LEN as u64).unwrap();
        let layer = if has_layer { layer.as_path() } else { Path::new("") };
        let mut kept = [0; SECTORS as usize];
        for round in 0..5_u64 {
            let Some(mut disk) = open(file.as_path(), layer, aio) else { return };
            check(&mut disk, &kept);
            drop(disk);
            let (file, layer) = (file.as_path().display(), layer.display());
            kill_one(test, &format!("{file},{layer},{}", 1 + (round << 32)), &mut kept);
        }
        check(&mut open(file.as_path(), layer, aio).unwrap(), &kept);
    }
}

#[test]
fn a_disk_by_io_uring() {
    outlives_its_process("a_disk_by_io_uring", Aio::IoUring, false);
}

#[test]
fn a_disk_by_threads() {
    outlives_its_process("a_disk_by_threads", Aio::Threads, false);
}

#[test]
fn a_layer_by_io_uring() {
    outlives_its_process("a_layer_by_io_uring", Aio::IoUring, true);
}

#[test]
fn a_layer_by_threads() {
    outlives_its_process("a_layer_by_threads", Aio::Threads, true);
}

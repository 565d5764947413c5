//! A disk's responses, and the contents of its file after them.

mod discard;
mod faults;
mod in_flight;
mod killed;
mod limits;
mod model;
mod refusals;
mod sleeps;
mod slots;
mod transfers;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vmm_sys_util::tempfile::TempFile;

use super::block::Block;
use super::test_driver::{Buffer, DATA, Driver};
use crate::config::{Aio, DiskConfig, Overlay};
use crate::disk_image::{self, DiskImage};
use crate::overlay::Layer;

/// Size of the tests' disks.
const SECTORS: u64 = 128;
const LEN: usize = SECTORS as usize * 512;

/// A disk whose driver is ready. Its file is full, and each sector is different.
struct Disk {
    driver: Driver,
    file: TempFile,
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 512 + seed) as u8 | 1).collect()
}

/// A file whose sectors are all different.
fn full() -> TempFile {
    let file = TempFile::new().unwrap();
    std::fs::write(file.as_path(), pattern(LEN, 0)).unwrap();
    file
}

impl Disk {
    fn new() -> Self {
        Self::open(false, false).unwrap()
    }

    fn readonly() -> Self {
        Self::open(true, false).unwrap()
    }

    /// A disk of `len` bytes whose file is a hole.
    fn sparse(len: u64) -> Self {
        Self::open_file(TempFile::new().unwrap(), false, false, len).unwrap()
    }

    /// `None` where the file system of temporary files has no O_DIRECT.
    fn direct() -> Option<Self> {
        let disk = Self::open(false, true);
        if disk.is_none() {
            eprintln!("skipped: no O_DIRECT in {}", std::env::temp_dir().display());
        }
        disk
    }

    fn open(readonly: bool, direct: bool) -> Option<Self> {
        Self::open_file(full(), readonly, direct, LEN as u64)
    }

    fn open_file(file: TempFile, readonly: bool, direct: bool, len: u64) -> Option<Self> {
        file.as_file().set_len(len).unwrap();
        let path = file.as_path().into();
        let config = DiskConfig { readonly, direct, ..DiskConfig::new(path) };
        let image = match disk_image::open(&config) {
            Err(error) if direct && error.to_string().contains("direct I/O") => return None,
            image => image.unwrap(),
        };
        Some(Self::of_image(file, image))
    }

    /// A disk whose requests are kept going by `aio`; `None` where the host does not have that.
    fn with(aio: Aio) -> Option<Self> {
        let file = full();
        let config = DiskConfig { aio, ..DiskConfig::new(file.as_path().into()) };
        match disk_image::open(&config) {
            Err(error) if aio == Aio::IoUring => {
                eprintln!("skipped: {error:#}");
                None
            }
            image => Some(Self::of_image(file, image.unwrap())),
        }
    }

    /// As `with`, below a layer that takes the writes.
    fn below_layer(aio: Aio) -> Option<Self> {
        let file = full();
        let overlay = Some(Overlay::Temporary);
        let config = DiskConfig { overlay, aio, ..DiskConfig::new(file.as_path().into()) };
        let mut image = disk_image::open(&config).ok()?;
        image
            .set_layer(|base, len| Layer::temporary(TempFile::new()?.into_file(), base, len))
            .unwrap();
        Some(Self::of_image(file, image))
    }

    /// As `with`, and all requests are jobs: nothing is read or written at once.
    fn with_jobs_for_all(aio: Aio) -> Option<Self> {
        let (file, image) = Self::image_with_jobs_for_all(aio)?;
        Some(Self::of_image(file, image))
    }

    /// As `with_jobs_for_all`, in a machine with four CPUs.
    fn with_four_queues(aio: Aio) -> Option<Self> {
        let (file, image) = Self::image_with_jobs_for_all(aio)?;
        Some(Self::for_cpus(file, image, 4))
    }

    fn image_with_jobs_for_all(aio: Aio) -> Option<(TempFile, DiskImage)> {
        let file = full();
        let config = DiskConfig { aio, ..DiskConfig::new(file.as_path().into()) };
        let image = disk_image::open(&config).ok()?;
        let again = std::fs::File::options().read(true).write(true).open(file.as_path()).unwrap();
        Some((file, image.on_file(again)))
    }

    fn of_image(file: TempFile, image: DiskImage) -> Self {
        Self::for_cpus(file, image, 1)
    }

    fn for_cpus(file: TempFile, image: DiskImage, cpus: u32) -> Self {
        Self::of_block(file, Block::new(image, 7, Some("serial"), cpus).unwrap())
    }

    fn of_block(file: TempFile, block: Block) -> Self {
        let mut driver = Driver::new(Box::new(block));
        driver.init();
        Self { driver, file }
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(self.file.as_path()).unwrap()
    }

    /// Sends a request; returns its status and the `room` bytes for data.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u32, Vec<u8>) {
        self.ask_in_pieces(kind, sector, data, room, &[])
    }

    /// As `ask`, with both parts of the request cut at `cuts`, at unaligned addresses.
    fn ask_in_pieces(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[u8],
        room: usize,
        cuts: &[usize],
    ) -> (u32, Vec<u8>) {
        let answers = self.offer(kind, sector, data, room, cuts);
        self.driver.kick(0);
        self.answer(&answers)
    }

    /// Makes a request available; returns the buffers of its response.
    fn offer(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[u8],
        room: usize,
        cuts: &[usize],
    ) -> Vec<Buffer> {
        let request = [&header(kind, sector), data].concat();
        let mut free = DATA + u64::from(!cuts.is_empty());
        let mut buffers = cut(&mut free, request.len(), cuts, false);
        let mut rest = &request[..];
        for (address, len, _) in &buffers {
            let (piece, after) = rest.split_at(*len as usize);
            self.driver.write(*address, piece);
            rest = after;
        }
        let answers = cut(&mut free, room + 1, cuts, true);
        buffers.extend(&answers);
        self.driver.add_indirect(0, &buffers);
        answers
    }

    /// Waits for a response; returns its status and data.
    fn answer(&mut self, answers: &[Buffer]) -> (u32, Vec<u8>) {
        let (_, written) = self.driver.wait_used(0);
        let room: usize = answers.iter().map(|(_, len, _)| *len as usize).sum();
        let read = |(address, len, _): &Buffer| self.driver.read(*address, *len as usize);
        let mut answer: Vec<_> = answers.iter().flat_map(read).collect();
        let status = u32::from(answer.pop().unwrap());
        assert!(written as usize <= room);
        (status, answer)
    }

    fn read(&mut self, sector: u64, len: usize) -> (u32, Vec<u8>) {
        self.ask(VIRTIO_BLK_T_IN, sector, &[], len)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u32 {
        self.ask(VIRTIO_BLK_T_OUT, sector, data, 0).0
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// Buffers of `len` bytes in all from `free` on, with gaps of a few bytes, cut at `cuts`.
fn cut(free: &mut u64, len: usize, cuts: &[usize], writable: bool) -> Vec<Buffer> {
    let mut ends: Vec<_> = cuts.iter().map(|at| at % len).chain([len]).collect();
    ends.sort_unstable();
    let mut start = 0;
    let mut buffers = Vec::new();
    for end in ends {
        buffers.push((*free, (end - start) as u32, writable));
        *free += (end - start) as u64 + 3;
        start = end;
    }
    buffers
}

/// A range of a discard or write-zeroes request.
fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

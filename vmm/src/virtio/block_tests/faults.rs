//! Faults of the host while requests are in flight: each is an error of its own request, and the disk goes on.

use std::fs::File;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

/// The data of a request with the index `index`.
fn room(index: usize) -> u64 {
    DATA + 0x1000 * index as u64
}

impl Disk {
    /// Sends all `requests` at a time, of `kind`, a sector and a count of sectors; returns their statuses.
    fn statuses(&mut self, requests: &[(u32, u64, u32)]) -> Vec<u32> {
        let mut heads = Vec::new();
        for (index, (kind, sector, count)) in requests.iter().enumerate() {
            let (header, data, status) = (room(index), room(index) + 0x200, room(index) + 0xfff);
            self.driver.write(header, &super::header(*kind, *sector));
            let data = (data, count * 512, *kind == VIRTIO_BLK_T_IN);
            heads.push(self.driver.add(0, &[(header, 16, false), data, (status, 1, true)]));
        }
        self.driver.kick(0);
        let mut left = heads;
        while !left.is_empty() {
            let (head, _) = self.driver.wait_used(0);
            let at = left.iter().position(|one| *one == head);
            left.swap_remove(at.expect("a request that is completed once"));
        }
        let status = |index| u32::from(self.driver.read(room(index) + 0xfff, 1)[0]);
        (0..requests.len()).map(status).collect()
    }
}

const WAYS: [Aio; 2] = [Aio::IoUring, Aio::Threads];
const OK: u32 = VIRTIO_BLK_S_OK;
const FAILED: u32 = VIRTIO_BLK_S_IOERR;

#[test]
fn what_a_file_that_was_cut_short_lacks_cannot_be_read() {
    for mut disk in WAYS.into_iter().filter_map(Disk::with) {
        disk.file.as_file().set_len(1024).unwrap();
        let read = |sector, count| (VIRTIO_BLK_T_IN, sector, count);
        let requests = [read(0, 1), read(1, 2), read(50, 1), read(1, 1), read(100, 4)];
        assert_eq!(disk.statuses(&requests), [OK, FAILED, FAILED, OK, FAILED]);
        assert_eq!(disk.statuses(&[(VIRTIO_BLK_T_OUT, 50, 1), read(0, 2)]), [OK, OK]);
        assert_eq!(disk.statuses(&[read(50, 1)]), [OK], "it was written");
    }
}

#[test]
fn what_the_host_refuses_to_write_is_an_error_and_reads_go_on() {
    for aio in WAYS {
        let file = full();
        let config = DiskConfig { aio, ..DiskConfig::new(file.as_path().into()) };
        // Open for reading only, which no disk is that may be written.
        let Ok(image) = DiskImage::new(File::open(file.as_path()).unwrap(), &config) else {
            continue;
        };
        let mut disk = Disk::of_image(file, image);
        let before = disk.contents();
        let requests: Vec<_> = (0..32)
            .map(|i| (if i % 2 == 0 { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN }, i, 1))
            .collect();
        let statuses = disk.statuses(&requests);
        assert_eq!(statuses, [FAILED, OK].repeat(16));
        assert_eq!(disk.contents(), before);
    }
}

#[test]
fn a_pause_gives_a_host_up_that_does_not_answer() {
    let Some(plain) = Disk::with(Aio::IoUring) else { return };
    let config = DiskConfig { aio: Aio::IoUring, ..DiskConfig::new(plain.file.as_path().into()) };
    drop(plain.driver);
    let image = disk_image::open(&config).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let image = image.on_file(std::os::fd::OwnedFd::from(reader).into());
    let mut disk = Disk::of_image(plain.file, image);
    disk.offer(VIRTIO_BLK_T_IN, 0, &[], 512, &[]);
    disk.driver.kick(0);
    disk.driver.wait_until("the request is taken", |driver| !driver.wants_kick(0));
    disk.driver.paused(|driver| assert_eq!(driver.used_index(0), 0));
    // What the kernel may still write to does not serve the guest again.
    disk.driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_ne!(disk.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

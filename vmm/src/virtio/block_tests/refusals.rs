//! Requests that a disk refuses, without a change to its file.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::{Disk, LEN, SECTORS, header, range};
use crate::virtio::test_driver::{DATA, RAM_SIZE};

/// Sector and length of transfers that exceed a disk of `SECTORS` sectors.
const OUTSIDE: [(u64, usize); 9] = [
    (SECTORS, 512),
    (SECTORS - 1, 1024),
    (0, LEN + 512),
    (1 << 32, 512),
    (1 << 55, 512),        // in bytes: 2^64
    ((1 << 55) - 1, 512),  // in bytes, its end is 2^64
    ((1 << 55) - 1, 1024), // its end wraps
    (u64::MAX - 1, 512),
    (u64::MAX, 0),
];

#[test]
fn transfers_outside_the_disk_fail_and_change_nothing() {
    let mut disk = Disk::new();
    let before = disk.contents();
    for (sector, len) in OUTSIDE {
        assert_eq!(disk.read(sector, len).0, VIRTIO_BLK_S_IOERR, "{sector:#x} {len}");
        assert_eq!(disk.write(sector, &vec![1; len]), VIRTIO_BLK_S_IOERR, "{sector:#x} {len}");
    }
    assert_eq!(disk.contents(), before);
}

#[test]
fn transfers_of_parts_of_a_sector_fail_and_change_nothing() {
    let mut disk = Disk::new();
    let before = disk.contents();
    for len in [1, 511, 513, 1000] {
        assert_eq!(disk.read(0, len).0, VIRTIO_BLK_S_IOERR, "{len}");
        assert_eq!(disk.write(0, &vec![1; len]), VIRTIO_BLK_S_IOERR, "{len}");
    }
    assert_eq!(disk.contents(), before);
}

#[test]
fn a_readonly_disk_only_reads() {
    let mut disk = Disk::readonly();
    let before = disk.contents();
    let offered = disk.driver.offered_features();
    assert_ne!(offered & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(offered & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
    assert_eq!(disk.write(0, &[1; 512]), VIRTIO_BLK_S_IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(disk.ask(kind, 0, &range(0, 1, 0), 0).0, VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(disk.read(0, 512), (VIRTIO_BLK_S_OK, before[..512].to_vec()));
    assert_eq!(disk.ask(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, VIRTIO_BLK_S_OK);
    assert_eq!(disk.contents(), before);
}

#[test]
fn a_writable_disk_offers_discard() {
    let mut disk = Disk::new();
    let offered = disk.driver.offered_features();
    assert_eq!(offered & 1 << VIRTIO_BLK_F_RO, 0);
    assert_ne!(offered & 1 << VIRTIO_BLK_F_DISCARD, 0);
    assert_ne!(offered & 1 << VIRTIO_BLK_F_WRITE_ZEROES, 0);
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut disk = Disk::new();
    let known = [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ];
    let kinds = (0..32).chain([256, 0x8000_0000, 0x8000_0001, u32::MAX]);
    for kind in kinds.filter(|kind| !known.contains(kind)) {
        assert_eq!(disk.ask(kind, 0, &[0; 512], 512).0, VIRTIO_BLK_S_UNSUPP, "{kind:#x}");
    }
}

#[test]
fn a_header_that_is_too_short_fails() {
    let mut disk = Disk::new();
    for len in 0..16 {
        let (answer, written) = disk.driver.request(0, &header(VIRTIO_BLK_T_IN, 0)[..len], 513);
        assert_eq!((answer[512], written), (VIRTIO_BLK_S_IOERR as u8, 0), "{len}");
    }
}

#[test]
fn a_request_without_room_for_its_status_needs_a_reset() {
    let mut disk = Disk::new();
    let before = disk.contents();
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, 77] {
        for more in [&[][..], &[(DATA + 16, 512, false)], &[(DATA + 16, 0, true)]] {
            disk.driver.init();
            disk.driver.write(DATA, &header(kind, 0));
            disk.driver.add(0, &[&[(DATA, 16, false)], more].concat());
            disk.driver.kick(0);
            disk.driver.wait_needs_reset();
            assert_eq!(disk.driver.used_index(0), 0);
        }
    }
    assert_eq!(disk.contents(), before);
    disk.driver.init();
    assert_eq!(disk.read(0, 512).0, VIRTIO_BLK_S_OK);
}

#[test]
fn a_request_larger_than_the_limits_fails_before_it_starts() {
    // The file is large enough, so that only the limit refuses the request.
    let mut disk = Disk::sparse(1 << 30);
    disk.driver.write(DATA, &header(VIRTIO_BLK_T_IN, 0));
    let everything = (0, RAM_SIZE as u32, true);
    let mut buffers = vec![everything; 256];
    buffers[0] = (DATA, 16, false);
    buffers[255] = (DATA + 0x1000, 513, true);
    disk.driver.add_indirect(0, &buffers);
    disk.driver.kick(0);
    assert_eq!(disk.driver.wait_used(0), (0, 0));
    assert_eq!(disk.driver.read(DATA + 0x1000 + 512, 1), [VIRTIO_BLK_S_IOERR as u8]);
}

//! Discard and write-zeroes.

use std::os::unix::fs::MetadataExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::{Disk, LEN, SECTORS, pattern, range};
use vmm_sys_util::tempfile::TempFile;

const KINDS: [u32; 2] = [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES];

#[test]
fn all_ranges_read_as_zeroes_and_nothing_else_does() {
    for kind in KINDS {
        let mut disk = Disk::new();
        let mut expected = disk.contents();
        let ranges = [range(1, 3, 0), range(SECTORS - 1, 1, 0), range(16, 24, 0), range(2, 0, 0)];
        assert_eq!(disk.ask(kind, 0, &ranges.concat(), 0).0, VIRTIO_BLK_S_OK);
        for zeroed in [512..4 * 512, LEN - 512..LEN, 16 * 512..40 * 512] {
            expected[zeroed].fill(0);
        }
        assert_eq!(disk.contents(), expected);
    }
}

#[test]
fn space_is_given_back_where_the_driver_says_so() {
    let unmap = virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    let cases = [
        (VIRTIO_BLK_T_DISCARD, 0, true),
        (VIRTIO_BLK_T_WRITE_ZEROES, unmap, true),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, false),
    ];
    for (kind, flags, given_back) in cases {
        let mut disk = Disk::new();
        let blocks = |disk: &Disk| disk.file.as_file().metadata().unwrap().blocks();
        disk.file.as_file().sync_all().unwrap();
        let before = blocks(&disk);
        assert_eq!(disk.ask(kind, 0, &range(0, SECTORS as u32, flags), 0).0, VIRTIO_BLK_S_OK);
        assert_eq!(blocks(&disk) + SECTORS / 2 <= before, given_back);
        assert_eq!(disk.contents().len(), LEN);
    }
}

#[test]
fn flags_that_have_no_meaning_are_unsupported() {
    let mut disk = Disk::new();
    let before = disk.contents();
    for flags in [1, 2, 3, 1 << 31, u32::MAX] {
        let (status, _) = disk.ask(VIRTIO_BLK_T_DISCARD, 0, &range(0, 1, flags), 0);
        assert_eq!(status, VIRTIO_BLK_S_UNSUPP, "discard, {flags:#x}");
    }
    for flags in [2, 3, 1 << 31, u32::MAX] {
        let (status, _) = disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, flags), 0);
        assert_eq!(status, VIRTIO_BLK_S_UNSUPP, "write zeroes, {flags:#x}");
    }
    assert_eq!(disk.contents(), before);
    let (status, _) = disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, 1), 0);
    assert_eq!(status, VIRTIO_BLK_S_OK, "unmap");
}

#[test]
fn ranges_outside_the_disk_and_more_than_the_limits_fail() {
    let mut disk = Disk::new();
    let before = disk.contents();
    let bad = [
        range(SECTORS, 1, 0),
        range(SECTORS - 1, 2, 0),
        range(0, SECTORS as u32 + 1, 0),
        range(0, u32::MAX, 0),
        range(1 << 55, 1, 0),
        range(u64::MAX, u32::MAX, 0),
        range(0, 1, 0)[..15].to_vec(),
        vec![0; 17 * 16], // one range more than the configuration allows
    ];
    for (data, kind) in bad.iter().flat_map(|data| KINDS.map(|kind| (data, kind))) {
        assert_eq!(disk.ask(kind, 0, data, 0).0, VIRTIO_BLK_S_IOERR, "{data:?}");
    }
    assert_eq!(disk.contents(), before);
}

#[test]
fn zeroes_are_written_where_the_file_system_has_no_other_way() {
    let in_memory = std::path::Path::new("/dev/shm"); // tmpfs: no FALLOC_FL_ZERO_RANGE
    if !in_memory.is_dir() {
        return eprintln!("skipped: there is no {}", in_memory.display());
    }
    for direct in [false, true] {
        let file = TempFile::new_in(in_memory).unwrap();
        std::fs::write(file.as_path(), pattern(LEN, 0)).unwrap();
        let Some(mut disk) = Disk::open_file(file, false, direct, LEN as u64) else { continue };
        let mut expected = disk.contents();
        let ranges = [range(1, 3, 0), range(16, 24, 0), range(60, 60, 0)].concat();
        let (status, _) = disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges, 0);
        assert_eq!(status, VIRTIO_BLK_S_OK);
        for zeroed in [512..4 * 512, 16 * 512..40 * 512, 60 * 512..120 * 512] {
            expected[zeroed].fill(0);
        }
        assert_eq!(disk.contents(), expected);
    }
}

#[test]
fn a_range_longer_than_the_limit_fails_on_a_disk_that_has_it() {
    let mut disk = Disk::sparse(4 << 30);
    for (kind, limit) in KINDS.into_iter().zip([36, 48]) {
        let max = disk.driver.get(VIRTIO_MMIO_CONFIG + limit);
        assert_eq!(disk.ask(kind, 0, &range(8, max, 0), 0).0, VIRTIO_BLK_S_OK);
        assert_eq!(disk.ask(kind, 0, &range(8, max + 1, 0), 0).0, VIRTIO_BLK_S_IOERR);
    }
}

#[test]
fn a_range_may_be_cut_anywhere_but_not_end_early() {
    for kind in KINDS {
        let mut disk = Disk::new();
        let (status, _) = disk.ask_in_pieces(kind, 0, &range(0, 1, 0), 0, &[7, 17, 25]);
        assert_eq!(status, VIRTIO_BLK_S_OK);
        assert_eq!(disk.contents()[..512], [0; 512]);
        let early = &[range(1, 1, 0), vec![0; 3]].concat();
        assert_eq!(disk.ask(kind, 0, early, 0).0, VIRTIO_BLK_S_IOERR);
    }
}

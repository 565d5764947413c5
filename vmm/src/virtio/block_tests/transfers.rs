//! Requests that move data.

use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use vmm_sys_util::tempfile::TempFile;

use super::{Disk, LEN, SECTORS, header, pattern};
use crate::virtio::test_driver::DATA;

#[test]
fn reads_return_what_the_file_holds() {
    let mut disk = Disk::new();
    let file = disk.contents();
    assert_eq!(disk.read(0, 512), (VIRTIO_BLK_S_OK, file[..512].to_vec()));
    assert_eq!(disk.read(5, 1024), (VIRTIO_BLK_S_OK, file[5 * 512..7 * 512].to_vec()));
    assert_eq!(disk.read(0, LEN), (VIRTIO_BLK_S_OK, file));
}

#[test]
fn a_file_that_looks_like_another_format_is_read_as_it_is() {
    // A qcow2 of 1 GiB with a backing file (QEMU docs/interop/qcow2.rst), VMDK, VHD, VHDX.
    let words = [3u32, 0, 104, 11, 16, 0, 1 << 30].map(u32::to_be_bytes).concat();
    let qcow2 = [b"QFI\xfb", words.as_slice(), &[0; 72], b"/etc/passwd"].concat();
    for start in [qcow2.as_slice(), b"KDMV", b"conectix", b"vhdxfile"] {
        let mut contents = pattern(LEN, 3);
        contents[..start.len()].copy_from_slice(start);
        let file = TempFile::new().unwrap();
        std::fs::write(file.as_path(), &contents).unwrap();
        let mut disk = Disk::open_file(file, false, false, LEN as u64).unwrap();
        assert_eq!(u64::from(disk.driver.get(VIRTIO_MMIO_CONFIG)), SECTORS);
        assert_eq!(disk.read(0, LEN), (VIRTIO_BLK_S_OK, contents));
    }
}

#[test]
fn writes_change_their_sectors_and_no_others() {
    let mut disk = Disk::new();
    let mut expected = disk.contents();
    for (sector, len) in [(0, 512), (SECTORS as usize - 1, 512), (8, 4096), (31, 1536)] {
        let data = pattern(len, 99);
        assert_eq!(disk.write(sector as u64, &data), VIRTIO_BLK_S_OK);
        expected[sector * 512..][..len].copy_from_slice(&data);
        assert_eq!(disk.contents(), expected);
    }
}

#[test]
fn a_driver_that_does_not_flush_is_served_too() {
    let mut disk = Disk::new();
    let features = disk.driver.offered_features();
    disk.driver.init_with(features & !(1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH));
    assert_eq!(disk.write(1, &[7; 512]), VIRTIO_BLK_S_OK);
    assert_eq!(disk.contents()[512..1024], [7; 512]);
}

#[test]
fn flush_and_transfers_of_nothing_succeed() {
    let mut disk = Disk::new();
    assert_eq!(disk.ask(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, VIRTIO_BLK_S_OK);
    assert_eq!(disk.read(SECTORS, 0).0, VIRTIO_BLK_S_OK);
    assert_eq!(disk.write(SECTORS, &[]), VIRTIO_BLK_S_OK);
}

#[test]
fn the_serial_number_is_padded_with_zeroes_and_fills_what_room_there_is() {
    let mut disk = Disk::new();
    let mut serial = [0; 20];
    serial[..6].copy_from_slice(b"serial");
    for room in [20, 64, 3] {
        let (status, answer) = disk.ask(VIRTIO_BLK_T_GET_ID, 0, &[], room);
        assert_eq!(status, VIRTIO_BLK_S_OK);
        let filled = room.min(20);
        assert_eq!(answer[..filled], serial[..filled]);
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut disk = Disk::new();
    for cuts in [&[8][..], &[1, 2, 3, 15, 17], &[16], &[511, 512, 513, 528], &[0, 0, 512]] {
        let data = pattern(1024, cuts[0]);
        let (status, _) = disk.ask_in_pieces(VIRTIO_BLK_T_OUT, 3, &data, 0, cuts);
        assert_eq!(status, VIRTIO_BLK_S_OK, "{cuts:?}");
        let answer = disk.ask_in_pieces(VIRTIO_BLK_T_IN, 3, &[], 1024, cuts);
        assert_eq!(answer, (VIRTIO_BLK_S_OK, data), "{cuts:?}");
    }
}

#[test]
fn the_response_has_how_much_was_written_from_its_start_on_without_a_gap() {
    let mut disk = Disk::new();
    let mut written = |kind, sector, room| disk.driver.request(0, &header(kind, sector), room).1;
    assert_eq!(written(VIRTIO_BLK_T_IN, 0, 1025), 1025);
    for kind in [VIRTIO_BLK_T_IN, 99] {
        assert_eq!(written(kind, SECTORS, 513), 0, "the status is behind what was not read");
        assert_eq!(written(kind, SECTORS + 1, 1), 1, "only the status");
    }
    assert_eq!(written(VIRTIO_BLK_T_FLUSH, 0, 1), 1);
    assert_eq!(written(VIRTIO_BLK_T_FLUSH, 0, 2), 0, "a byte that no flush fills");
    for (room, expected) in [(4, 4), (21, 21), (22, 20), (65, 20)] {
        assert_eq!(written(VIRTIO_BLK_T_GET_ID, 0, room), expected, "{room}");
    }
}

#[test]
fn an_io_error_of_the_host_is_answered_and_the_disk_goes_on() {
    let mut disk = Disk::new();
    disk.file.as_file().set_len(4096).unwrap();
    assert_eq!(disk.read(8, 512).0, VIRTIO_BLK_S_IOERR);
    assert_eq!(disk.read(7, 1024).0, VIRTIO_BLK_S_IOERR, "half of it is gone");
    assert_eq!(disk.read(7, 512).0, VIRTIO_BLK_S_OK);
    disk.file.as_file().write_all_at(&[5; 512], 4096).unwrap();
    assert_eq!(disk.read(8, 512), (VIRTIO_BLK_S_OK, vec![5; 512]));
}

#[test]
fn the_configuration_has_size_and_limits() {
    let mut disk = Disk::new();
    let [sectors, sectors_high, size_max, seg_max, _, block_size] =
        [0, 4, 8, 12, 16, 20].map(|at| disk.driver.get(VIRTIO_MMIO_CONFIG + at));
    assert_eq!((u64::from(sectors), sectors_high), (SECTORS, 0));
    assert_eq!(block_size, 512);
    // Linux takes no disk whose buffers cannot hold a page.
    assert!(size_max >= 4096 && seg_max + 2 <= disk.driver.queue_max(0));
}

#[test]
fn direct_io_takes_buffers_and_sectors_of_any_alignment() {
    let Some(mut disk) = Disk::direct() else { return };
    let mut expected = disk.contents();
    for (at, sector, len) in [
        (DATA, 0, 4096),
        (DATA + 1, 8, 4096),
        (DATA + 511, 3, 512),
        (DATA + 512, 13, 1024),
        (DATA + 1, 15, 8704),
    ] {
        let data = pattern(len, at as usize);
        disk.driver.write(at, &header(VIRTIO_BLK_T_OUT, sector));
        disk.driver.write(at + 0x4000, &data);
        let answer = (at + 0x2000, 1, true);
        let out = (at + 0x4000, data.len() as u32, false);
        disk.driver.add(0, &[(at, 16, false), out, answer]);
        disk.driver.kick(0);
        disk.driver.wait_used(0);
        assert_eq!(disk.driver.read(at + 0x2000, 1), [VIRTIO_BLK_S_OK as u8]);
        expected[sector as usize * 512..][..len].copy_from_slice(&data);
        assert!(disk.contents() == expected);
        assert_eq!(disk.read(sector, len), (VIRTIO_BLK_S_OK, data));
    }
}

#[test]
fn a_driver_sees_the_same_units_however_the_file_is_opened() {
    // Some file systems report no unit of O_DIRECT, as tmpfs; it is 4096 bytes then.
    for folder in [std::env::temp_dir(), "/dev/shm".into()] {
        let mut seen = Vec::new();
        for direct in [false, true] {
            let Ok(file) = TempFile::new_in(&folder) else { continue };
            let Some(mut disk) = Disk::open_file(file, false, direct, 1 << 20) else { continue };
            let units = [20, 24, 44].map(|at| disk.driver.get(VIRTIO_MMIO_CONFIG + at));
            assert_eq!(units[0], 512, "{folder:?} {direct}");
            seen.push(units);
            assert_eq!(disk.write(1, &[7; 512]), VIRTIO_BLK_S_OK);
            assert_eq!(disk.read(1, 512), (VIRTIO_BLK_S_OK, vec![7; 512]));
        }
        seen.dedup();
        assert!(seen.len() <= 1, "{folder:?}: {seen:?}");
    }
}

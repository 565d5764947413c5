//! Layers that are damaged, or of another disk, are refused with one line, and stay as they are.

use std::os::unix::fs::FileExt;

use super::{BITMAP, BLOCK, Files, LEN, pattern};
use crate::overlay::sector;

/// A layer that has been written to.
fn used() -> Files {
    let files = Files::new(LEN);
    let mut layer = files.open().unwrap();
    files.write(&mut layer, BLOCK, &pattern(3 * BLOCK, 9));
    files
}

#[track_caller]
fn refused(files: &Files, words: &str) {
    let before = std::fs::read(files.layer.as_path()).unwrap();
    let error = match files.open() {
        Ok(_) => panic!("it is taken, and should be refused for: {words}"),
        Err(error) => format!("{error:#}"),
    };
    assert!(error.contains(words) && !error.contains('\n'), "{error}");
    assert!(std::fs::read(files.layer.as_path()).unwrap() == before, "it has changed");
}

fn change(files: &Files, offset: u64, change: impl FnOnce(&mut [u8; 512])) {
    let mut sector = [0; 512];
    files.layer.as_file().read_exact_at(&mut sector, offset).unwrap();
    change(&mut sector);
    files.layer.as_file().write_all_at(&sector, offset).unwrap();
}

#[test]
fn each_bit_of_header_and_bitmap_is_checked() {
    for (offset, words) in [(0, "header is damaged"), (BITMAP, "bitmap is damaged in sector 0")] {
        let files = used();
        for at in 0..512 {
            let bit = 1 << (at % 8);
            change(&files, offset, |sector| sector[at] ^= bit);
            let words = if offset + at as u64 <= 7 { "it is no overlay" } else { words };
            refused(&files, words);
            change(&files, offset, |sector| sector[at] ^= bit);
        }
        files.open().unwrap();
    }
}

#[test]
fn fields_that_are_wrong_but_sealed_are_checked_too() {
    let cases = [
        (8, "version 0"),
        (12, "another disk"), // fingerprint
        (16, "another disk"), // block size
        (24, "another disk"), // length
        (100, "another disk"),
    ];
    for (at, words) in cases {
        let files = used();
        change(&files, 0, |bytes| {
            bytes[at] ^= 1;
            sector::seal(bytes);
        });
        refused(&files, words);
    }
}

#[test]
fn a_disk_that_is_another_or_has_changed_is_refused() {
    for at in [0, 511, 1080, LEN as u64 - 1] {
        let files = used();
        let mut byte = [0];
        files.base.as_file().read_exact_at(&mut byte, at).unwrap();
        files.base.as_file().write_all_at(&[!byte[0]], at).unwrap();
        refused(&files, "another disk");
        files.base.as_file().write_all_at(&byte, at).unwrap();
        files.open().unwrap();
    }
    for len in [LEN - 512, LEN + 512, 512, LEN * 2] {
        let files = used();
        files.base.as_file().set_len(len as u64).unwrap();
        refused(&files, "another disk");
    }
}

#[test]
fn a_layer_of_another_length_is_refused() {
    for (len, words) in [
        (1, "it is no overlay"),
        (511, "it is no overlay"),
        (512, "cut off"),
        (BITMAP, "cut off"),
        (BITMAP + 512, "cut off"),
        (2 * BITMAP + LEN as u64 - 1, "cut off"),
        (2 * BITMAP + LEN as u64 + 1, "cut off"),
    ] {
        let files = used();
        files.layer.as_file().set_len(len).unwrap();
        refused(&files, words);
    }
}

#[test]
fn after_a_failed_flush_nothing_more_is_claimed() {
    let files = used();
    let mut layer = files.open().unwrap();
    files.write(&mut layer, 0, &[1; BLOCK]);
    layer.failed.store(true, std::sync::atomic::Ordering::SeqCst);
    layer.sync().unwrap_err();
    layer.sync().unwrap_err();
    drop(layer);
    let layer = files.open().unwrap();
    assert_eq!(files.read(&layer, 0, BLOCK), pattern(BLOCK, 0));
}

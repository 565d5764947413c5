use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::GuestAddress;

use super::*;
use crate::memory::served::testing::{Fault, next, provide};
use crate::memory::served::{self, ServedRegion};
use crate::memory::{give_back, of_ranges};

const LEN: u64 = 1 << 20;
const HIGH: u64 = 1 << 32;
/// Pages of both regions.
const PAGES: [u64; 4] = [0, LEN - PAGE as u64, HIGH, HIGH + 17 * PAGE as u64];

fn ram() -> GuestRam {
    of_ranges(&[(0, LEN), (HIGH, LEN)])
}

fn file() -> File {
    memfd_create("memory", MemfdFlags::CLOEXEC).unwrap().into()
}

fn marker(number: u8) -> Marker {
    [number; 16]
}

fn pagemap() -> File {
    File::open("/proc/self/pagemap").unwrap()
}

fn saved(ram: &GuestRam, extent: Extent, markers: &[u8]) -> File {
    let (file, markers) = (file(), markers.iter().copied().map(marker).collect::<Vec<_>>());
    save(ram, &pagemap(), extent, &markers, &file).unwrap();
    file
}

fn restored(file: &File, markers: &[u8]) -> Result<GuestRam> {
    let (ram, markers) = (ram(), markers.iter().copied().map(marker).collect::<Vec<_>>());
    restore(&ram, file, &markers, false).map(|()| ram)
}

fn bytes(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; 2 * LEN as usize];
    let (low, high) = bytes.split_at_mut(LEN as usize);
    ram.read_slice(low, GuestAddress(0)).unwrap();
    ram.read_slice(high, GuestAddress(HIGH)).unwrap();
    bytes
}

/// Copies the data of `diff` over `base`, as clients do. Returns how many bytes that were.
fn copy_over(base: &File, diff: &File) -> u64 {
    let (mut at, mut copied) = (0, 0);
    while let Ok(start) = seek(diff, SeekFrom::Data(at)) {
        at = seek(diff, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        diff.read_exact_at(&mut bytes, start).unwrap();
        base.write_all_at(&bytes, start).unwrap();
        copied += at - start;
    }
    copied
}

fn write(ram: &GuestRam, page: u64, byte: u8) {
    ram.write_slice(&[byte; PAGE], GuestAddress(page)).unwrap();
}

fn discard(ram: &GuestRam, page: u64) {
    give_back(ram, &ram.get_slice(GuestAddress(page), PAGE).unwrap()).unwrap();
}

#[test]
fn a_diff_copied_over_what_it_was_made_over_is_all_of_memory() {
    let first = ram();
    PAGES.iter().for_each(|page| write(&first, *page, 7));
    let base = saved(&first, Extent::Full, &[1]);
    // The file is a machine's, and stays as it is.
    let copy = || {
        let copy = file();
        copy_over(&copy, &base);
        copy
    };
    let second = restored(&base, &[1]).unwrap();
    write(&second, PAGES[0], 0);
    discard(&second, PAGES[1]);
    write(&second, 5 * PAGE as u64, 9);
    write(&second, HIGH + 6 * PAGE as u64, 9);
    discard(&second, HIGH + 6 * PAGE as u64);
    let now = bytes(&second);
    let diff = saved(&second, Extent::Diff, &[1, 2]);
    let merged = copy();
    assert_eq!(copy_over(&merged, &diff), 4 * PAGE as u64 + 16);
    assert!(bytes(&restored(&merged, &[1, 2]).unwrap()) == now);

    // The next one goes over the first one, and over what that was made over.
    discard(&second, PAGES[2]);
    write(&second, PAGES[1], 3);
    let now = bytes(&second);
    let next = saved(&second, Extent::Diff, &[1, 3]);
    for merged in [merged, copy()] {
        copy_over(&merged, &next);
        assert!(bytes(&restored(&merged, &[1, 3]).unwrap()) == now);
    }
}

#[test]
fn a_diff_of_a_diff_needs_both() {
    let first = ram();
    write(&first, PAGES[3], 7);
    let base = saved(&first, Extent::Full, &[1]);
    let second = restored(&base, &[1]).unwrap();
    write(&second, PAGES[0], 8);
    let diff = saved(&second, Extent::Diff, &[1, 2]);
    drop(second);
    copy_over(&base, &diff);
    let third = restored(&base, &[1, 2]).unwrap();
    write(&third, PAGES[0], 0);
    let now = bytes(&third);
    let last = saved(&third, Extent::Diff, &[1, 2, 3]);
    for file in [&last, &diff] {
        let alone = restored(file, &[1, 2, 3]).unwrap_err().to_string();
        assert!(alone.contains("a Diff"), "{alone}");
    }
    let other = saved(&first, Extent::Full, &[9]);
    copy_over(&other, &last);
    let other = restored(&other, &[1, 2, 3]).unwrap_err().to_string();
    assert!(other.contains("a Diff"), "{other}");
    let merged = file();
    copy_over(&merged, &base);
    copy_over(&merged, &last);
    assert!(bytes(&restored(&merged, &[1, 2, 3]).unwrap()) == now);
}

#[test]
fn diffs_of_a_machine_that_was_booted_are_whole_and_go_over_what_was_before() {
    let first = ram();
    PAGES.iter().for_each(|page| write(&first, *page, 7));
    let base = saved(&first, Extent::Diff, &[1]);
    assert!(!needs_base(&first));
    assert!(bytes(&restored(&base, &[1]).unwrap()) == bytes(&first));
    write(&first, PAGES[0], 0);
    discard(&first, PAGES[1]);
    write(&first, PAGES[2], 6);
    let next = saved(&first, Extent::Diff, &[2]);
    assert!(bytes(&restored(&next, &[2]).unwrap()) == bytes(&first));
    copy_over(&base, &next);
    assert!(bytes(&restored(&base, &[2]).unwrap()) == bytes(&first));
    // So is one whose memory was read at once.
    let read = ram();
    restore(&read, &next, &[marker(2)], true).unwrap();
    write(&read, PAGES[2], 0);
    copy_over(&base, &saved(&read, Extent::Diff, &[3]));
    assert!(bytes(&restored(&base, &[3]).unwrap()) == bytes(&read));
}

#[test]
fn a_file_with_more_data_than_was_written_is_refused() {
    let file = file();
    file.set_len(LEN).unwrap();
    file.write_all_at(&[1; PAGE], PAGE as u64).unwrap();
    ensure_holes(&file, PAGE as u64).unwrap();
    let error = ensure_holes(&file, 0).unwrap_err().to_string();
    assert!(error.contains("4096 bytes of data where 0 were written"), "{error}");
}

/// Serves `regions` of what is in `file` until `ends`. Returns how many pages it served.
fn serve(faults: &OwnedFd, regions: &[ServedRegion], file: &File, ends: &AtomicBool) -> usize {
    let (mut removed, mut count) = (Vec::<Range<u64>>::new(), 0);
    while !ends.load(Ordering::SeqCst) {
        match next(faults) {
            None => thread::sleep(Duration::from_micros(100)),
            Some(Fault::Removed(start, end)) => removed.push(start..end),
            Some(Fault::Missing(address)) => {
                let mut page = [0; PAGE];
                let region = regions.iter().find(|region| {
                    region.address + region.len > address && region.address <= address
                });
                let offset = region.map(|region| address - region.address + region.offset).unwrap();
                if !removed.iter().any(|range| range.contains(&address)) {
                    file.read_exact_at(&mut page, offset).unwrap();
                }
                provide(faults, address, &page);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn what_another_process_provides_is_saved_as_it_is() {
    let Ok(faults) = served::new(None) else {
        return eprintln!("SKIPPED: this user has no userfaultfd for the kernel's faults");
    };
    let first = ram();
    PAGES.iter().for_each(|page| write(&first, *page, 7));
    let base = saved(&first, Extent::Full, &[1]);
    let second = ram();
    let regions = served::register(&second, &faults, false).unwrap();
    assert_eq!((regions[1].offset, regions[1].len, regions[1].page), (LEN, LEN, PAGE as u64));
    let ends = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| served.store(serve(&faults, &regions, &base, &ends), Ordering::SeqCst));
        write(&second, PAGES[0], 0);
        discard(&second, PAGES[1]);
        write(&second, HIGH + 6 * PAGE as u64, 9);
        discard(&second, HIGH + 6 * PAGE as u64);
        write(&second, HIGH + 6 * PAGE as u64, 5);
        let diff = saved(&second, Extent::Diff, &[1, 2]);
        let full = saved(&second, Extent::Full, &[2]);
        let merged = file();
        copy_over(&merged, &base);
        assert_eq!(copy_over(&merged, &diff), 3 * PAGE as u64 + 16);
        let now = bytes(&second);
        assert!(bytes(&restored(&merged, &[1, 2]).unwrap()) == now);
        assert!(bytes(&restored(&full, &[2]).unwrap()) == now);
        assert!(now[..PAGE] == [0; PAGE] && now[LEN as usize - PAGE..LEN as usize] == [0; PAGE]);
        ends.store(true, Ordering::SeqCst);
    });
    let served = served.into_inner();
    assert!(served > 500, "{served} pages were served");
}

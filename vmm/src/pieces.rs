//! Access to a range of a disk's file in pieces, with the alignment and units of O_DIRECT (open(2)).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

/// Alignment of memory, and unit of a file, that O_DIRECT accepts on every device.
pub const ALIGN: usize = 4096;
/// Most bytes in a piece, and the largest unit.
pub const MAX_PIECE: usize = 128 << 10;

/// What to do with a range that the guest does not need any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Writes zeroes; the range keeps its space.
    Keep,
    /// Makes the range read as zeroes, without space where the file system supports holes.
    Unmap,
    /// Frees the space. Where the file system cannot, nothing happens and the error is `Unsupported`.
    Discard,
}

/// Zeroes or discards `range` of `file`; writes zeroes where the file system has no other way.
pub fn zero(file: &File, unit: u64, range: Range<u64>, how: Zero) -> io::Result<()> {
    let ways: &[_] = match how {
        Zero::Keep => &[FallocateFlags::ZERO_RANGE],
        Zero::Unmap => &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE],
        Zero::Discard => &[FallocateFlags::PUNCH_HOLE],
    };
    for way in ways {
        let flags = *way | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fallocate(file, flags, range.start, range.end - range.start)) {
            // EINVAL: the range is a part of a block device's sector.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            done => return Ok(done?),
        }
    }
    match how {
        Zero::Discard => Err(io::ErrorKind::Unsupported.into()),
        Zero::Keep | Zero::Unmap => write(file, unit, range, |part| part.fill(0)),
    }
}

/// Writes `range` of `file` in whole units of `unit` bytes: `fill` is called with the parts, in order.
pub fn write(
    file: &File,
    unit: u64,
    range: Range<u64>,
    mut fill: impl FnMut(&mut [u8]),
) -> io::Result<()> {
    each(unit, range, |at, piece, part| {
        if part.len() < piece.len() {
            file.read_exact_at(piece, at)?; // the rest of its units keeps its contents
        }
        fill(&mut piece[part]);
        file.write_all_at(piece, at)
    })
}

/// Reads `range` of `file` in whole units of `unit` bytes: `take` is called with the parts, in order.
pub fn read(
    file: &File,
    unit: u64,
    range: Range<u64>,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    each(unit, range, |at, piece, part| {
        file.read_exact_at(piece, at)?;
        take(&piece[part]);
        Ok(())
    })
}

/// Calls `io` with the offset of a piece in the file, aligned memory for the piece, and the part of it that is in
/// `range`.
fn each(
    unit: u64,
    range: Range<u64>,
    mut io: impl FnMut(u64, &mut [u8], Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let max = MAX_PIECE as u64 / unit * unit;
    let mut space = vec![0; MAX_PIECE + ALIGN];
    let start = space.as_ptr().align_offset(ALIGN);
    let mut at = range.start;
    while at < range.end {
        let first = at - at % unit;
        let end = range.end.min(first + max);
        let len = (end.next_multiple_of(unit) - first) as usize;
        let part = (at - first) as usize..(end - first) as usize;
        io(first, &mut space[start..start + len], part)?;
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    #[test]
    fn any_range_is_read_and_written_in_whole_units() {
        let contents: Vec<u8> = (0..3 * MAX_PIECE).map(|at| (at % 251) as u8).collect();
        let len = contents.len() as u64;
        for unit in [1, 512, 4096, 3 * 512, MAX_PIECE as u64] {
            let file = TempFile::new().unwrap();
            for range in [0..len, 0..1, 511..4097, 5000..5001, len - 1..len, 7..len - 7, 9..9] {
                std::fs::write(file.as_path(), &contents).unwrap();
                let mut found = Vec::<u8>::new();
                read(file.as_file(), unit, range.clone(), |part| found.extend(part)).unwrap();
                let bytes = range.start as usize..range.end as usize;
                assert!(found == contents[bytes.clone()], "{range:?} by {unit}");
                write(file.as_file(), unit, range.clone(), |part| part.fill(255)).unwrap();
                let mut expected = contents.clone();
                expected[bytes].fill(255);
                assert!(std::fs::read(file.as_path()).unwrap() == expected, "{range:?} by {unit}");
            }
        }
    }

    #[test]
    fn space_that_cannot_be_given_back_is_an_error_that_says_so() {
        // A file without fallocate(2), of which nothing is written.
        let file = File::options().read(true).write(true).open("/proc/self/comm").unwrap();
        let error = zero(&file, 512, 0..512, Zero::Discard).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}

//! The console's log: a file of a fixed size with the last bytes that a guest has printed.
//!
//! The file is a ring, followed by the number of bytes that were ever written. It has a fixed size because a guest can
//! print without end and, on most hosts, the folder is in memory. It is one file because none can be made, renamed or
//! opened once the jail is closed.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// Bytes of the ring.
const SIZE: u64 = 1 << 20;
/// Most bytes that are appended at once.
pub(super) const PIECE: usize = 4096;

/// The writing end.
pub(super) struct Log {
    file: File,
    written: u64,
}

impl Log {
    /// Empties `file`.
    pub(super) fn new(file: File) -> Result<Self> {
        file.set_len(0)?;
        Ok(Self { file, written: 0 })
    }

    /// Appends at most `PIECE` bytes. They are lost if the file system is full.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let at = self.written % SIZE;
        let (end, start) = bytes.split_at(bytes.len().min((SIZE - at) as usize));
        let written = self.file.write_all_at(end, at);
        if written.and_then(|()| self.file.write_all_at(start, 0)).is_ok() {
            self.written += bytes.len() as u64;
            let _ = self.file.write_all_at(&self.written.to_le_bytes(), SIZE);
        }
    }
}

/// What was written after the first `seen` bytes, as far as the file still has it, and the number of bytes written.
pub fn read(file: &File, seen: u64) -> Result<(Vec<u8>, u64)> {
    let written = written(file)?;
    let from = written.saturating_sub(SIZE).max(seen).min(written);
    let mut bytes = vec![0; (written - from) as usize];
    let at = from % SIZE;
    let (end, start) = bytes.split_at_mut(((written - from).min(SIZE - at)) as usize);
    file.read_exact_at(end, at)?;
    file.read_exact_at(start, 0)?;
    // The machine may have written meanwhile, a piece more than it has counted.
    let kept = self::written(file)?.saturating_add(PIECE as u64).saturating_sub(SIZE);
    let lost = kept.saturating_sub(from).min(written - from);
    bytes.drain(..lost as usize);
    Ok((bytes, written))
}

fn written(file: &File) -> Result<u64> {
    let mut count = [0; 8];
    match file.read_exact_at(&mut count, SIZE) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
        read => read.map(|()| u64::from_le_bytes(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_the_last_bytes_and_a_fixed_size() {
        let path = std::env::temp_dir().join(format!("tinyvmm-log-{}", std::process::id()));
        let options = || File::options().read(true).write(true).create(true).truncate(true).clone();
        let file = options().open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&file, 0).unwrap(), (Vec::new(), 0));
        let mut log = Log::new(file.try_clone().unwrap()).unwrap();
        log.append(b"first");
        log.append(b" second");
        assert_eq!(read(&file, 0).unwrap(), (b"first second".to_vec(), 12));
        assert_eq!(read(&file, 6).unwrap().0, b"second");
        // Pieces that do not divide the size, so that one of them goes around its end.
        let all: Vec<u8> = (0..3 * SIZE as u32).map(|at| (at % 251) as u8).collect();
        all.chunks(4093).for_each(|piece| log.append(piece));
        let (bytes, written) = read(&file, 0).unwrap();
        assert_eq!(written, 12 + 3 * SIZE);
        assert_eq!(bytes.len(), SIZE as usize - PIECE);
        assert!(all.ends_with(&bytes));
        assert_eq!(read(&file, written - 100).unwrap().0, all[all.len() - 100..]);
        assert_eq!(read(&file, written).unwrap().0, b"");
        assert_eq!(read(&file, u64::MAX).unwrap().0, b"");
        assert_eq!(file.metadata().unwrap().len(), SIZE + 8);
        // Whatever is in the file, reading it is bounded.
        file.write_all_at(&[0xff; 8], SIZE).unwrap();
        assert!(read(&file, 0).unwrap().0.len() <= SIZE as usize);
    }
}

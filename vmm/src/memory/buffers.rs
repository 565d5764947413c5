//! The guest memory of one request, in the order of its descriptors.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Consecutive bytes of a request, wherever they are in guest RAM. Taking from the front shortens it.
#[derive(Clone, Default)]
pub struct Buffers<'a> {
    slices: Vec<VolatileSlice<'a>>,
}

/// IOV_MAX: the most pieces in one preadv(2).
const MAX_PIECES: usize = 1024;

impl<'a> Buffers<'a> {
    /// Adds `slice` at the end.
    pub fn push(&mut self, slice: VolatileSlice<'a>) {
        self.slices.push(slice);
    }

    /// The pieces, in order.
    pub fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'a>> {
        self.slices.iter()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `count` bytes, or all if there are fewer.
    pub fn take(&mut self, count: usize) -> Buffers<'a> {
        let mut taken = Buffers::default();
        while let Some(first) = self.slices.first().copied() {
            let left = count - taken.len();
            if first.len() > left {
                // Cannot fail: `left` is within `first`.
                if let (Ok(front), Ok(rest)) = (first.subslice(0, left), first.offset(left)) {
                    taken.slices.push(front);
                    self.slices[0] = rest;
                }
                break;
            }
            taken.slices.push(self.slices.remove(0));
        }
        taken
    }

    /// Takes the last byte, which is a request's status.
    pub fn take_last_byte(&mut self) -> Option<VolatileSlice<'a>> {
        let last = self.slices.last_mut()?;
        let front = last.len().checked_sub(1)?;
        let byte = last.offset(front).ok()?;
        *last = last.subslice(0, front).ok()?;
        Some(byte)
    }

    /// Takes `N` bytes and copies them; `None` if there are fewer.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.take(N);
        let mut bytes = [0; N];
        (taken.len() == N).then(|| taken.copy_to(&mut bytes))?;
        Some(bytes)
    }

    /// Copies the start of `self` into `bytes`.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut at = 0;
        for slice in &self.slices {
            at += slice.copy_to(&mut bytes[at..]);
        }
    }

    /// Copies `bytes` to the start of `self`; returns the number of bytes copied, at most the length of `self`.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut at = 0;
        for slice in &self.slices {
            let len = slice.len().min(bytes.len() - at);
            slice.copy_from(&bytes[at..at + len]);
            at += len;
        }
        at
    }

    /// Reads from `file` at `offset` into all of `self`.
    pub fn read_from_file(self, file: &File, offset: u64) -> io::Result<()> {
        let rest = self.transfer(file, offset, libc::preadv64)?;
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Writes all of `self` to `file` at `offset`.
    pub fn write_to_file(self, file: &File, offset: u64) -> io::Result<()> {
        let rest = self.transfer(file, offset, libc::pwritev64)?;
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Repeats `call` until all is transferred or it transfers nothing; returns the rest.
    fn transfer(mut self, file: &File, mut offset: u64, call: Transfer) -> io::Result<Buffers<'a>> {
        while !self.is_empty() {
            let guards: Vec<_> =
                self.slices.iter().take(MAX_PIECES).map(|s| (s.ptr_guard_mut(), s.len())).collect();
            let pieces: Vec<_> = guards
                .iter()
                .map(|(g, len)| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: *len })
                .collect();
            // SAFETY: the pieces are guest RAM, which stays mapped and has no references; only the kernel touches it in
            // the call.
            let done = unsafe {
                call(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32, offset as i64)
            };
            match done {
                0 => break,
                1.. => {
                    self.take(done as usize);
                    offset += done as u64;
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(self)
    }
}

type Transfer = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize;

//! The guest memory of one request, in the order of its descriptors.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::{io, iter};

use vm_memory::VolatileSlice;

use super::GuestRam;
use crate::memory;

/// Consecutive bytes of a request, wherever they are in guest RAM. Taking from the front
/// shortens it.
#[derive(Clone, Default)]
pub struct Buffers<'a> {
    slices: VecDeque<VolatileSlice<'a>>,
    /// Of all of them together.
    len: usize,
}

impl<'a> From<VolatileSlice<'a>> for Buffers<'a> {
    fn from(slice: VolatileSlice<'a>) -> Self {
        Self { len: slice.len(), slices: [slice].into() }
    }
}

/// IOV_MAX: the most pieces in one preadv(2).
pub const MAX_PIECES: usize = 1024;

impl<'a> Buffers<'a> {
    /// Adds `slice` at the end.
    pub fn push(&mut self, slice: VolatileSlice<'a>) {
        self.len += slice.len();
        self.slices.push_back(slice);
    }

    /// The pieces, in order.
    pub fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'a>> {
        self.slices.iter()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `count` bytes, or all if there are fewer.
    pub fn take(&mut self, count: usize) -> Buffers<'a> {
        if count >= self.len {
            return std::mem::take(self);
        }
        let mut taken = Buffers::default();
        while let Some(first) = self.slices.pop_front() {
            let left = count - taken.len;
            if first.len() <= left {
                taken.push(first);
                continue;
            }
            // Cannot fail: `left` is within `first`.
            if let (Ok(front), Ok(rest)) = (first.subslice(0, left), first.offset(left)) {
                taken.push(front);
                self.slices.push_front(rest);
            }
            break;
        }
        self.len -= taken.len;
        taken
    }

    /// Lets go of the first `count` bytes, or of all if there are fewer.
    fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        while left > 0
            && let Some(first) = self.slices.front_mut()
        {
            match first.offset(left) {
                Ok(rest) if first.len() > left => {
                    *first = rest;
                    return;
                }
                _ => left -= first.len(),
            }
            self.slices.pop_front();
        }
    }

    /// Takes the last byte, which is a request's status.
    pub fn take_last_byte(&mut self) -> Option<VolatileSlice<'a>> {
        let last = self.slices.back_mut()?;
        let front = last.len().checked_sub(1)?;
        let byte = last.offset(front).ok()?;
        match front {
            0 => drop(self.slices.pop_back()),
            _ => *last = last.subslice(0, front).ok()?,
        }
        self.len -= 1;
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
            if at == bytes.len() {
                break;
            }
            at += slice.copy_to(&mut bytes[at..]);
        }
    }

    /// Copies `bytes` to the start of `self`; returns the number of bytes copied, at most the length of `self`.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut at = 0;
        for slice in &self.slices {
            if at == bytes.len() {
                break;
            }
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

    /// What a system call is given of it: at most [`MAX_PIECES`].
    pub fn pieces(&self) -> impl Iterator<Item = libc::iovec> {
        self.slices.iter().take(MAX_PIECES).map(piece)
    }

    /// Reads from `file` at `offset` into the start of `self`; returns how many bytes.
    pub fn read_some(&self, file: &File, offset: u64) -> io::Result<usize> {
        self.call(file, offset, libc::preadv64)
    }

    /// Reads what the page cache has into the start of `self`, without waiting; returns how many bytes.
    ///
    /// # Errors
    ///
    /// EAGAIN: the page cache lacks the first of them. EOPNOTSUPP: the file system does not support it.
    pub fn read_cached(&self, file: &File, offset: u64) -> io::Result<usize> {
        self.call(file, offset, preadv2_nowait)
    }

    /// Writes the start of `self` to `file` at `offset`; returns how many bytes.
    pub fn write_some(&self, file: &File, offset: u64) -> io::Result<usize> {
        self.call(file, offset, libc::pwritev64)
    }

    /// What a system call is given of the bytes in `range`: at most [`MAX_PIECES`].
    fn pieces_of(&self, range: Range<usize>) -> impl Iterator<Item = libc::iovec> {
        let mut before = 0;
        let within = self.slices.iter().filter_map(move |slice| {
            let at = before;
            before += slice.len();
            let (start, end) = (range.start.max(at), range.end.min(before));
            slice.subslice(start - at, end.checked_sub(start)?).ok()
        });
        within.filter(|slice| !slice.is_empty()).take(MAX_PIECES).map(|slice| piece(&slice))
    }

    /// Reads from `from`, which has no position, into the bytes of `range`, then into `after`; returns how many bytes.
    pub fn receive(
        &self,
        from: BorrowedFd,
        range: Range<usize>,
        after: &mut [u8],
    ) -> io::Result<usize> {
        let mut pieces: Vec<_> = self.pieces_of(range).collect();
        // Otherwise the range may have more pieces, and is read on in the next call.
        if !after.is_empty() && pieces.len() < MAX_PIECES {
            pieces.push(libc::iovec { iov_base: after.as_mut_ptr().cast(), iov_len: after.len() });
        }
        // SAFETY: the pieces are guest RAM, which is mapped for as long as its slices live and which nobody holds
        // references to, and `after`, which is borrowed for the call.
        let done = unsafe { libc::readv(from.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes `before`, then the bytes of `range`, to `to`, which has no position; returns how many bytes.
    pub fn send(&self, before: &[u8], range: Range<usize>, to: BorrowedFd) -> io::Result<usize> {
        let iov_base = before.as_ptr().cast_mut().cast();
        let before = libc::iovec { iov_base, iov_len: before.len() };
        let pieces: Vec<_> =
            iter::once(before).chain(self.pieces_of(range)).take(MAX_PIECES).collect();
        // SAFETY: `before` is borrowed for the call, which only reads; the others are guest RAM as in `receive`.
        let done = unsafe { libc::writev(to.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Sends the start of `self` to the stream socket `to`, without waiting, and without SIGPIPE if nobody reads there;
    /// returns how many bytes.
    pub fn send_some(&self, to: BorrowedFd) -> io::Result<usize> {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let mut sent = 0;
        for slice in &self.slices {
            let (piece, to) = (piece(slice), to.as_raw_fd());
            // SAFETY: guest RAM as in `receive`, of which the call only reads this piece.
            let done = unsafe { libc::send(to, piece.iov_base, piece.iov_len, FLAGS) };
            match usize::try_from(done) {
                Ok(count) => sent += count,
                Err(_) if sent == 0 => return Err(io::Error::last_os_error()),
                Err(_) => break,
            }
            if done.cast_unsigned() < piece.iov_len {
                break;
            }
        }
        Ok(sent)
    }

    fn call(&self, file: &File, offset: u64, call: Transfer) -> io::Result<usize> {
        let pieces: Vec<_> = self.pieces().collect();
        // SAFETY: the pieces are guest RAM, which is mapped for as long as its slices live and which nobody holds
        // references to; only the kernel touches it in the call.
        let done =
            unsafe { call(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32, offset as i64) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Repeats `call` until all is done or it transfers nothing; returns what is left.
    fn transfer(mut self, file: &File, mut offset: u64, call: Transfer) -> io::Result<Buffers<'a>> {
        while !self.is_empty() {
            match self.call(file, offset, call) {
                Ok(0) => break,
                Ok(done) => {
                    self.advance(done);
                    offset += done as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self)
    }
}

fn piece(slice: &VolatileSlice) -> libc::iovec {
    let guard = slice.ptr_guard_mut();
    libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() }
}

/// preadv2(2) with RWF_NOWAIT.
unsafe extern "C" fn preadv2_nowait(
    fd: i32,
    pieces: *const libc::iovec,
    count: i32,
    offset: i64,
) -> isize {
    // SAFETY: as the caller has it for preadv(2).
    unsafe { libc::preadv64v2(fd, pieces, count, offset, libc::RWF_NOWAIT) }
}

type Transfer = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize;

/// Guest memory of a request that goes on after the call which began it: it stays mapped.
pub struct Held {
    buffers: Buffers<'static>,
    _ram: Arc<GuestRam>,
}

// SAFETY: what is shared is guest RAM, which any thread may touch, as volatile memory only, while it is mapped.
unsafe impl Send for Held {}

impl Held {
    /// Holds `buffers`; `None` if they are not all in `ram`.
    pub fn new(buffers: Buffers, ram: &Arc<GuestRam>) -> Option<Self> {
        let is_in_ram = |slice: &VolatileSlice| {
            memory::region_of(ram, slice.ptr_guard().as_ptr().addr(), slice.len()).is_some()
        };
        buffers.slices().all(is_in_ram).then_some(())?;
        // SAFETY: the bytes are in `ram`, which is mapped for as long as `Self` is there, and `Self` only lends them.
        let buffers = unsafe { std::mem::transmute::<Buffers<'_>, Buffers<'static>>(buffers) };
        Some(Self { buffers, _ram: ram.clone() })
    }

    /// What is held.
    pub fn buffers(&self) -> &Buffers<'_> {
        &self.buffers
    }

    /// Adds what `other` holds, of the same RAM, at the end.
    pub fn append(&mut self, other: Self) {
        self.buffers.len += other.buffers.len;
        self.buffers.slices.extend(other.buffers.slices);
    }

    /// Lets go of the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
        self.buffers.advance(count);
    }
}

//! What a network card is connected to: a stream that carries frames, or a tap.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ioctl_fionbio, read, write};

use crate::memory::buffers::Buffers;
use crate::sync::lock;

/// Bytes of the header before a frame in a virtqueue (virtio 1.2, 5.1.6: `struct virtio_net_hdr`).
pub const HEADER: usize = 12;
/// Least bytes of a frame: addresses and type (IEEE 802.3). The other end pads.
pub const MIN_FRAME: usize = 14;
/// Most bytes of a frame on a stream.
pub const MAX_FRAME: usize = u16::MAX as usize;
/// Most bytes of a frame on a tap: an IP packet of 64 KiB behind addresses, type and a VLAN's tag.
const MAX_TAP_FRAME: usize = u16::MAX as usize + 18;

/// TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6 (include/uapi/linux/if_tun.h): what the driver takes of a tap.
pub const CHECKSUMS: u32 = 1;
/// The same, for segments of TCP over IPv4.
pub const SEGMENTS4: u32 = 2;
/// The same, for segments of TCP over IPv6.
pub const SEGMENTS6: u32 = 4;
/// `_IOW('T', 208, unsigned int)`
pub const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// The host's end of a cable. Clones share it, and where in a frame it is.
#[derive(Clone)]
pub struct Wire {
    end: Arc<OwnedFd>,
    is_tap: bool,
    framing: Arc<Mutex<Framing>>,
}

/// Where a stream is: each frame follows its length, 4 bytes, big-endian (passt's protocol, and QEMU's `-netdev stream`).
#[derive(Default)]
struct Framing {
    /// The length of the frame that comes.
    length: [u8; 4],
    /// Bytes of that length that have come, and of the frame.
    of_length: usize,
    received: usize,
    /// The frame is for a driver that is gone, or that has no room for it.
    skips: bool,
    /// The length of the frame that is sent, as it is sent before, and how much is left of both.
    sends: usize,
    sent_length: [u8; 4],
    left: usize,
    /// The frame's driver is gone: the rest is filled up.
    fills: bool,
    is_lost: bool,
}

impl Wire {
    /// The end of a stream.
    pub fn stream(end: OwnedFd) -> io::Result<Self> {
        Self::new(end, false)
    }

    /// A tap with IFF_VNET_HDR and headers of [`HEADER`] bytes.
    pub fn tap(end: OwnedFd) -> io::Result<Self> {
        Self::new(end, true)
    }

    fn new(end: OwnedFd, is_tap: bool) -> io::Result<Self> {
        ioctl_fionbio(&end, true)?;
        Ok(Self { end: Arc::new(end), is_tap, framing: Arc::default() })
    }

    /// Whether it is a tap, which carries the driver's headers, too.
    pub fn is_tap(&self) -> bool {
        self.is_tap
    }

    /// Most bytes of a frame.
    pub fn max_frame(&self) -> usize {
        if self.is_tap { MAX_TAP_FRAME } else { MAX_FRAME }
    }

    /// The length of the frame that comes next; `None` if only [`Self::receive`] shows it.
    ///
    /// # Errors
    ///
    /// WouldBlock: there is none yet. Any other: there will be no more.
    pub fn next(&self) -> io::Result<Option<usize>> {
        if self.is_tap {
            return Ok(None);
        }
        let framing = &mut *lock(&self.framing);
        loop {
            while framing.of_length < 4 {
                framing.of_length += self.read(&mut framing.length[framing.of_length..])?;
            }
            let len = framing.incoming();
            if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("a frame of {len} bytes"),
                ));
            }
            if !framing.skips {
                return Ok(Some(len));
            }
            let mut scrap = [0; 4096];
            while framing.received < len {
                let most = scrap.len().min(len - framing.received);
                framing.received += self.read(&mut scrap[..most])?;
            }
            framing.has_received(0);
        }
    }

    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match read(&self.end, into)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }

    /// Receives a frame into the first `most` bytes of `room`, of a stream after [`HEADER`] bytes, and of a tap with its
    /// header. Returns the bytes of both; of a tap more than `most` if the frame was cut off. A stream's room has to be
    /// for what [`Self::next`] has returned.
    ///
    /// # Errors
    ///
    /// As those of [`Self::next`]; after WouldBlock the room for the frame's start may be filled already, and has to be
    /// the same the next time.
    pub fn receive(&self, room: &Buffers, most: usize) -> io::Result<usize> {
        if self.is_tap {
            let count = room.receive(self.as_fd(), 0..most, &mut [])?;
            return if count < HEADER { Err(ErrorKind::InvalidData.into()) } else { Ok(count) };
        }
        let framing = &mut *lock(&self.framing);
        let len = framing.incoming();
        let mut after = [0; 4];
        while framing.received < len {
            let rest = HEADER + framing.received..HEADER + len;
            let count = match room.receive(self.as_fd(), rest, &mut after)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => count,
            };
            framing.received += count;
        }
        framing.length = after;
        framing.has_received(framing.received - len);
        Ok(HEADER + len)
    }

    /// Whether a frame has come in part, so that the rest comes without anything else having to happen.
    pub fn is_amid(&self) -> bool {
        let framing = lock(&self.framing);
        framing.of_length > 0 || framing.received > 0
    }

    /// The next frame is not for the driver.
    pub fn skip(&self) {
        lock(&self.framing).skips = true;
    }

    /// Sends `frame`, on a tap with the driver's header.
    ///
    /// # Errors
    ///
    /// WouldBlock: not now; `frame` has to be the same the next time. Of a tap, others are about this frame.
    pub fn send(&self, frame: &Buffers) -> io::Result<()> {
        if self.is_tap {
            return frame.send(&[], 0..frame.len(), self.as_fd()).map(drop);
        }
        let framing = &mut *lock(&self.framing);
        self.fill(framing)?;
        if framing.left == 0 {
            (framing.sends, framing.left) = (frame.len(), 4 + frame.len());
            framing.sent_length = (frame.len() as u32).to_be_bytes();
        }
        // A driver that has changed a frame which is half sent.
        framing.fills = frame.len() != framing.sends;
        self.fill(framing)?;
        while framing.left > 0 {
            let rest = framing.sends.saturating_sub(framing.left)..framing.sends;
            framing.left -= frame.send(framing.unsent_length(), rest, self.as_fd())?;
        }
        Ok(())
    }

    /// Sends zeroes for the rest of a frame that has no driver any more.
    fn fill(&self, framing: &mut Framing) -> io::Result<()> {
        while framing.fills && framing.left > 0 {
            let zeroes = &[0; 4096][..framing.left.min(4096)];
            framing.left -= match framing.unsent_length() {
                [] => write(&self.end, zeroes)?,
                length => write(&self.end, length)?,
            };
        }
        framing.fills = false;
        Ok(())
    }

    /// The driver is gone: the next one begins with whole frames.
    pub fn abandon(&self) {
        let framing = &mut *lock(&self.framing);
        framing.skips |= framing.received > 0;
        framing.fills = framing.left > 0;
    }

    /// Nothing comes or goes any more.
    pub fn lose(&self) {
        lock(&self.framing).is_lost = true;
    }

    /// Whether that is so.
    pub fn is_lost(&self) -> bool {
        lock(&self.framing).is_lost
    }

    /// Whether the other end is gone.
    pub fn is_cut(&self) -> bool {
        let mut end = [PollFd::new(self, PollFlags::empty())];
        poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
    }

    /// Has a tap leave checksums and segments to the driver: some of [`CHECKSUMS`], [`SEGMENTS4`] and [`SEGMENTS6`].
    pub fn set_offload(&self, what: u32) -> io::Result<()> {
        // SAFETY: the request takes a plain number (drivers/net/tun.c).
        let done = unsafe { libc::ioctl(self.end.as_raw_fd(), TUNSETOFFLOAD.into(), what) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl Framing {
    /// The length of the frame that comes.
    fn incoming(&self) -> usize {
        u32::from_be_bytes(self.length) as usize
    }

    /// What has not been sent of the length before the frame.
    fn unsent_length(&self) -> &[u8] {
        let left = self.left.saturating_sub(self.sends);
        &self.sent_length[4 - left.min(4)..]
    }

    /// The frame is complete; `of_next` bytes of the next one's length have come, too.
    fn has_received(&mut self, of_next: usize) {
        (self.of_length, self.received, self.skips) = (of_next, 0, false);
    }
}

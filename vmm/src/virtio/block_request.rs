//! What a disk's driver asks for (virtio 1.2, 5.2.6).

use std::io;

use virtio_bindings::virtio_blk as blk;

use super::queue::Chain;
use crate::disk_image::DiskImage;
use crate::engine::Kind;
use crate::geometry::{Geometry, SECTOR};
use crate::memory::buffers::Buffers;
use crate::pieces::Zero;

/// Data buffers of a request.
pub const SEG_MAX: u32 = 254;
/// Bytes in one data buffer. Larger than drivers use; it bounds how long a request takes, and
/// with that how long a reset or a pause waits for one.
const SIZE_MAX: u32 = 1 << 20;

/// What a request that discards or zeroes ranges may have.
pub struct Limits {
    pub ranges: u32,
    /// Of each range.
    pub sectors: u32,
}

pub const DISCARD: Limits = Limits { ranges: 16, sectors: 1 << 22 };
/// Zeroes may have to be written: 128 MiB in a request at most, as long as other requests with data take.
pub const WRITE_ZEROES: Limits = Limits { ranges: 4, sectors: 1 << 16 };

/// The error of a request.
pub enum RequestError {
    Io(io::Error),
    /// What the driver asks for is not in the disk, or not allowed.
    Invalid,
    Unsupported,
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a request asks for, all of it in the disk. Offsets and lengths are in bytes.
pub enum Operation<'a> {
    /// A flush has no data.
    Transfer { kind: Kind, offset: u64, data: Buffers<'a> },
    /// The disk's serial number.
    Id,
    /// Ranges, each with its offset and its length.
    Zero(Vec<(u64, u64, Zero)>),
}

impl<'a> Operation<'a> {
    /// Reads the request in `chain`, whose status byte is taken, and takes its data.
    pub fn parse(chain: &mut Chain<'a>, disk: &DiskImage) -> Result<Self, RequestError> {
        let header: [u8; 16] = chain.readable.read_array().ok_or(RequestError::Invalid)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let may_write = || if disk.readonly() { Err(RequestError::Invalid) } else { Ok(()) };
        match kind {
            blk::VIRTIO_BLK_T_IN => {
                Self::transfer(Kind::Read, sector, chain.writable.take(usize::MAX), disk)
            }
            blk::VIRTIO_BLK_T_OUT => {
                may_write()?;
                Self::transfer(Kind::Write, sector, chain.readable.take(usize::MAX), disk)
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                Ok(Self::Transfer { kind: Kind::Flush, offset: 0, data: Buffers::default() })
            }
            blk::VIRTIO_BLK_T_GET_ID => Ok(Self::Id),
            blk::VIRTIO_BLK_T_DISCARD => {
                may_write()?;
                let how = |flags| (flags == 0).then_some(Zero::Discard);
                ranges(&mut chain.readable, &DISCARD, disk, how)
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                may_write()?;
                let how = |flags| match flags {
                    0 => Some(Zero::Keep),
                    blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Some(Zero::Unmap),
                    _ => None,
                };
                ranges(&mut chain.readable, &WRITE_ZEROES, disk, how)
            }
            _ => Err(RequestError::Unsupported),
        }
    }

    fn transfer(
        kind: Kind,
        sector: u64,
        data: Buffers<'a>,
        disk: &DiskImage,
    ) -> Result<Self, RequestError> {
        let fits = data.len() <= SEG_MAX as usize * SIZE_MAX as usize;
        let offset = if fits {
            offset(sector, data.len() as u64, disk)?
        } else {
            return Err(RequestError::Invalid);
        };
        Ok(Self::Transfer { kind, offset, data })
    }

    /// Whether it touches what is on the disk.
    pub fn touches(&self) -> bool {
        !matches!(self, Self::Id)
    }
}

/// The offset of `len` bytes at `sector`, if the disk has them.
fn offset(sector: u64, len: u64, disk: &DiskImage) -> Result<u64, RequestError> {
    let offset = sector.checked_mul(SECTOR).ok_or(RequestError::Invalid)?;
    let end = offset.checked_add(len).ok_or(RequestError::Invalid)?;
    let fits = len.is_multiple_of(SECTOR) && end <= disk.size();
    if fits { Ok(offset) } else { Err(RequestError::Invalid) }
}

/// The ranges of a request, each to become what `how` says for its flags.
fn ranges<'a>(
    list: &mut Buffers,
    limits: &Limits,
    disk: &DiskImage,
    how: impl Fn(u32) -> Option<Zero>,
) -> Result<Operation<'a>, RequestError> {
    if list.len() > limits.ranges as usize * 16 {
        return Err(RequestError::Invalid);
    }
    let mut ranges = Vec::new();
    while !list.is_empty() {
        let range: [u8; 16] = list.read_array().ok_or(RequestError::Invalid)?;
        let (sector, count, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
        let how = how(flags).ok_or(RequestError::Unsupported)?;
        if count > limits.sectors {
            return Err(RequestError::Invalid);
        }
        let len = u64::from(count) * SECTOR;
        ranges.push((offset(sector, len, disk)?, len, how));
    }
    Ok(Operation::Zero(ranges))
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// The configuration space of a disk with so many `queues`: `struct virtio_blk_config` (5.2.4).
pub(super) fn space(image: &DiskImage, queues: u16) -> Vec<u8> {
    let Geometry { sector, block, discard } = image.geometry();
    let mut config = (image.size() / SECTOR).to_le_bytes().to_vec();
    config.extend(SIZE_MAX.to_le_bytes());
    config.extend(SEG_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry: not offered
    config.extend((sector as u32).to_le_bytes());
    config.extend([(block / sector).ilog2() as u8, 0, 0, 0, 0, 0, 0, 0]); // sectors in a physical block
    config.extend([0; 2]); // writeback: not offered
    config.extend(queues.to_le_bytes());
    // To Linux the alignment is the granularity, too (drivers/block/virtio_blk.c).
    let alignment = (discard / SECTOR) as u32;
    let (discard, zeroes) = (DISCARD, WRITE_ZEROES);
    for field in [discard.sectors, discard.ranges, alignment, zeroes.sectors, zeroes.ranges] {
        config.extend(field.to_le_bytes());
    }
    config.extend([1, 0, 0, 0]); // zeroing may deallocate
    config
}

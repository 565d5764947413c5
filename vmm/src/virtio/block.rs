//! virtio-blk on a raw image file or block device (virtio 1.2, 5.2).

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::metric::Metric;

use super::disk_counts::DiskCounts;
use super::queue::{Chain, Virtqueue};
use super::rate::Limiter;
use super::{ConfigSpace, Driver, VirtioDevice};
use crate::config::DiskConfig;
use crate::disk_image::{DiskImage, SECTOR};
use crate::memory::buffers::Buffers;
use crate::pieces::Zero;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Data buffers of a request: the queue's entries, less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes in one data buffer. Larger than drivers use; it bounds the time of a request, and with that of a reset or a
/// pause.
const SIZE_MAX: u32 = 1 << 20;
/// Most queues: more gain nothing, as one thread serves them all.
const MAX_QUEUES: u16 = 4;

/// Limits of a discard or write-zeroes request.
struct Limits {
    ranges: u32,
    /// Sectors of each range.
    sectors: u32,
}

const DISCARD: Limits = Limits { ranges: 16, sectors: 1 << 22 };
/// Zeroes may have to be written, so a request has at most 128 MiB, as other requests with data.
const WRITE_ZEROES: Limits = Limits { ranges: 4, sectors: 1 << 16 };

/// The error of a request.
enum RequestError {
    Io(io::Error),
    /// The request is outside the disk, or not allowed.
    Invalid,
    Unsupported,
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A disk.
pub struct Block {
    image: DiskImage,
    name: String,
    id: [u8; DiskConfig::MAX_ID],
    queues: u16,
    /// The driver does not flush: each write has to be durable when it is completed.
    write_through: bool,
    counts: Arc<DiskCounts>,
    /// The limits of requests and of bytes of their data.
    pub limiter: Option<Limiter>,
}

impl Block {
    /// The disk with this index, backed by `image`, for a machine with `cpus` CPUs.
    pub fn new(image: DiskImage, index: usize, id: Option<&str>, cpus: u32) -> Self {
        let name = format!("disk{index}");
        let mut padded = [0; DiskConfig::MAX_ID];
        let id = id.unwrap_or(&name).bytes();
        padded.iter_mut().zip(id).for_each(|(to, from)| *to = from);
        let queues = u16::try_from(cpus).unwrap_or(MAX_QUEUES).clamp(1, MAX_QUEUES);
        let counts = Arc::default();
        Self { image, name, id: padded, queues, write_through: true, counts, limiter: None }
    }

    /// Replaces the image. The driver sees its size; the block size and whether it is read-only do not change.
    pub fn set_image(&mut self, image: DiskImage) {
        // The driver's next flush reaches only the new image.
        if let Err(error) = self.image.sync() {
            log::error!("{}: what was written last may be lost: {error}", self.name);
        }
        self.image = image;
    }

    /// The backing image.
    pub fn image(&self) -> &DiskImage {
        &self.image
    }

    /// The counters of requests.
    pub fn counts(&self) -> &Arc<DiskCounts> {
        &self.counts
    }

    /// Whether the limits let `chain` be served now.
    fn admit(&mut self, chain: &Chain) -> bool {
        let Some(limiter) = &mut self.limiter else { return true };
        // Header and status do not count as data.
        let bytes =
            chain.readable.len().saturating_sub(16) + chain.writable.len().saturating_sub(1);
        let admitted = limiter.admit(bytes as u64, Instant::now());
        if !admitted {
            self.counts.throttled.inc();
        }
        admitted
    }

    fn serve(&mut self, chain: &mut Chain) -> Result<u32> {
        let status = chain.writable.take_last_byte();
        ensure!(status.is_some(), "a request without room for its status");
        let room = chain.writable.len();
        let (code, written) = match self.execute(chain) {
            Ok(()) => (blk::VIRTIO_BLK_S_OK, room - chain.writable.len()),
            Err(RequestError::Unsupported) => (blk::VIRTIO_BLK_S_UNSUPP, 0),
            Err(RequestError::Invalid) => (blk::VIRTIO_BLK_S_IOERR, 0),
            Err(RequestError::Io(error)) => {
                self.image.log(&self.name, &error);
                (blk::VIRTIO_BLK_S_IOERR, 0)
            }
        };
        if code != blk::VIRTIO_BLK_S_OK {
            self.counts.errors.inc();
        }
        if let Some(status) = status {
            status.copy_from(&[code as u8]);
        }
        // The length that the driver may rely on: the written bytes from the start, without a gap (virtio 1.2,
        // 2.7.8.2).
        let written = if written == room { written + 1 } else { written };
        Ok(u32::try_from(written)?)
    }

    /// Executes the request in `chain`. Buffers that it takes from `chain.writable` are filled.
    fn execute(&mut self, chain: &mut Chain) -> Result<(), RequestError> {
        let header: [u8; 16] = chain.readable.read_array().ok_or(RequestError::Invalid)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        match kind {
            blk::VIRTIO_BLK_T_IN => {
                let data = chain.writable.take(usize::MAX);
                let (offset, len) = (self.data_offset(sector, &data)?, data.len() as u64);
                self.image.read(data, offset)?;
                self.counts.reads.inc();
                self.counts.read_bytes.add(len);
                Ok(())
            }
            blk::VIRTIO_BLK_T_OUT => {
                self.writable()?;
                let data = chain.readable.take(usize::MAX);
                let (offset, len) = (self.data_offset(sector, &data)?, data.len() as u64);
                self.image.write(data, offset)?;
                self.counts.writes.inc();
                self.counts.write_bytes.add(len);
                self.sync_if_write_through()
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                self.image.sync()?;
                self.counts.flushes.inc();
                Ok(())
            }
            blk::VIRTIO_BLK_T_GET_ID => {
                let room = chain.writable.take(self.id.len());
                room.copy_from(&self.id);
                Ok(())
            }
            blk::VIRTIO_BLK_T_DISCARD => self
                .zero(&mut chain.readable, &DISCARD, |flags| (flags == 0).then_some(Zero::Discard)),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.zero(&mut chain.readable, &WRITE_ZEROES, |flags| match flags {
                    0 => Some(Zero::Keep),
                    blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Some(Zero::Unmap),
                    _ => None,
                })
            }
            _ => Err(RequestError::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), RequestError> {
        if self.image.readonly() { Err(RequestError::Invalid) } else { Ok(()) }
    }

    /// Offset in the image of a request's `data`.
    fn data_offset(&self, sector: u64, data: &Buffers) -> Result<u64, RequestError> {
        let fits = data.len() <= SEG_MAX as usize * SIZE_MAX as usize;
        if fits { self.range(sector, data.len() as u64) } else { Err(RequestError::Invalid) }
    }

    /// Offset in the image of `len` bytes at `sector`, if the disk has them.
    fn range(&self, sector: u64, len: u64) -> Result<u64, RequestError> {
        let offset = sector.checked_mul(SECTOR).ok_or(RequestError::Invalid)?;
        let end = offset.checked_add(len).ok_or(RequestError::Invalid)?;
        let fits = len.is_multiple_of(SECTOR) && end <= self.image.size();
        if fits { Ok(offset) } else { Err(RequestError::Invalid) }
    }

    /// Discards or zeroes `ranges`; `how` maps the flags of each.
    fn zero(
        &mut self,
        ranges: &mut Buffers,
        limits: &Limits,
        how: impl Fn(u32) -> Option<Zero>,
    ) -> Result<(), RequestError> {
        self.writable()?;
        if ranges.len() > limits.ranges as usize * 16 {
            return Err(RequestError::Invalid);
        }
        self.counts.discards.inc();
        while !ranges.is_empty() {
            let range: [u8; 16] = ranges.read_array().ok_or(RequestError::Invalid)?;
            let (sector, count, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
            let how = how(flags).ok_or(RequestError::Unsupported)?;
            if count > limits.sectors {
                return Err(RequestError::Invalid);
            }
            let len = u64::from(count) * SECTOR;
            let offset = self.range(sector, len)?;
            self.image.zero(offset, len, how)?;
        }
        self.sync_if_write_through()
    }

    fn sync_if_write_through(&mut self) -> Result<(), RequestError> {
        if self.write_through { Ok(self.image.sync()?) } else { Ok(()) }
    }
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn features(&self) -> u64 {
        let mut features = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        if self.queues > 1 {
            features |= 1 << blk::VIRTIO_BLK_F_MQ;
        }
        features
            | if self.image.readonly() {
                1 << blk::VIRTIO_BLK_F_RO
            } else {
                1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Arc<dyn ConfigSpace> {
        let unit = self.image.unit() / SECTOR;
        let mut config = (self.image.size() / SECTOR).to_le_bytes().to_vec();
        config.extend(SIZE_MAX.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        config.extend([0; 4]); // geometry: not offered
        // Always 512: a partition table that was made for this sector size would not be found otherwise.
        config.extend((SECTOR as u32).to_le_bytes());
        config.extend([unit.ilog2() as u8, 0, 0, 0, 0, 0, 0, 0]); // sectors in a physical block
        config.extend([0; 2]); // writeback: not offered
        config.extend(self.queues.to_le_bytes());
        let alignment = unit as u32;
        let (discard, zeroes) = (DISCARD, WRITE_ZEROES);
        for field in [discard.sectors, discard.ranges, alignment, zeroes.sectors, zeroes.ranges] {
            config.extend(field.to_le_bytes());
        }
        config.extend([1, 0, 0, 0]); // zeroing may deallocate
        Arc::new(config)
    }

    fn activate(&mut self, driver: &Driver) {
        self.write_through = driver.features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
    }

    fn handle(&mut self, index: usize, queues: &mut [Virtqueue]) -> Result<()> {
        queues[index].serve_some(|chain| match self.admit(chain) {
            true => self.serve(chain).map(Some),
            false => Ok(None),
        })
    }

    fn resume_at(&mut self) -> Option<Instant> {
        self.limiter.as_mut()?.resume_at()
    }
}

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
/// Data buffers of a request: what a queue holds, less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes in one data buffer. Larger than drivers use; it bounds how long a request takes, and
/// with that how long a reset or a pause waits for one.
const SIZE_MAX: u32 = 1 << 20;
/// More queues than this gain nothing: one thread serves them all.
const MAX_QUEUES: u16 = 4;

/// What a request that discards or zeroes ranges may have.
struct Limits {
    ranges: u32,
    /// Of each range.
    sectors: u32,
}

const DISCARD: Limits = Limits { ranges: 16, sectors: 1 << 22 };
/// Zeroes may have to be written: 128 MiB in a request at most, as long as other requests with data take.
const WRITE_ZEROES: Limits = Limits { ranges: 4, sectors: 1 << 16 };

/// A request's answer if it is not OK.
enum Refusal {
    Io(io::Error),
    /// What the driver asks for is not in the disk, or not allowed.
    Invalid,
    Unsupported,
}

impl From<io::Error> for Refusal {
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
    /// The driver does not flush: each write has to be safe when it is answered.
    write_through: bool,
    counts: Arc<DiskCounts>,
    /// What limits it, in requests and in bytes of their data.
    pub limiter: Option<Limiter>,
}

impl Block {
    /// The `index`-th disk, backed by `image`, for a machine with `cpus` CPUs.
    pub fn new(image: DiskImage, index: usize, id: Option<&str>, cpus: u32) -> Self {
        let name = format!("disk{index}");
        let mut padded = [0; DiskConfig::MAX_ID];
        let id = id.unwrap_or(&name).bytes();
        padded.iter_mut().zip(id).for_each(|(to, from)| *to = from);
        let queues = u16::try_from(cpus).unwrap_or(MAX_QUEUES).clamp(1, MAX_QUEUES);
        let counts = Arc::default();
        Self { image, name, id: padded, queues, write_through: true, counts, limiter: None }
    }

    /// Puts another image into its place. The driver sees its size; the block size stays, and whether it can be written.
    pub fn set_image(&mut self, image: DiskImage) {
        // The driver's next flush reaches only the new one.
        if let Err(error) = self.image.sync() {
            log::error!("{}: what was written last may be lost: {error}", self.name);
        }
        self.image = image;
    }

    /// What backs it.
    pub fn image(&self) -> &DiskImage {
        &self.image
    }

    /// What has gone through it.
    pub fn counts(&self) -> &Arc<DiskCounts> {
        &self.counts
    }

    /// Whether the limit lets `chain` be served now.
    fn admit(&mut self, chain: &Chain) -> bool {
        let Some(limiter) = &mut self.limiter else { return true };
        // One is header, the other status; a driver that sends neither pays for it.
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
            Err(Refusal::Unsupported) => (blk::VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Invalid) => (blk::VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Io(error)) => {
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
        // What the driver may rely on: the bytes from the start on, without a gap (virtio 1.2, 2.7.8.2).
        let written = if written == room { written + 1 } else { written };
        Ok(u32::try_from(written)?)
    }

    /// Does what `chain` asks for. What it takes of `chain.writable` it has filled.
    fn execute(&mut self, chain: &mut Chain) -> Result<(), Refusal> {
        let header: [u8; 16] = chain.readable.read_array().ok_or(Refusal::Invalid)?;
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
            _ => Err(Refusal::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.image.readonly() { Err(Refusal::Invalid) } else { Ok(()) }
    }

    /// Offset in the image of a request's `data`.
    fn data_offset(&self, sector: u64, data: &Buffers) -> Result<u64, Refusal> {
        let fits = data.len() <= SEG_MAX as usize * SIZE_MAX as usize;
        if fits { self.range(sector, data.len() as u64) } else { Err(Refusal::Invalid) }
    }

    /// Offset in the image of `len` bytes at `sector`, if the disk has them.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::Invalid)?;
        let end = offset.checked_add(len).ok_or(Refusal::Invalid)?;
        let fits = len.is_multiple_of(SECTOR) && end <= self.image.size();
        if fits { Ok(offset) } else { Err(Refusal::Invalid) }
    }

    /// Discards or zeroes `ranges`, as `how` says for the flags of each.
    fn zero(
        &mut self,
        ranges: &mut Buffers,
        limits: &Limits,
        how: impl Fn(u32) -> Option<Zero>,
    ) -> Result<(), Refusal> {
        self.writable()?;
        if ranges.len() > limits.ranges as usize * 16 {
            return Err(Refusal::Invalid);
        }
        self.counts.discards.inc();
        while !ranges.is_empty() {
            let range: [u8; 16] = ranges.read_array().ok_or(Refusal::Invalid)?;
            let (sector, count, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
            let how = how(flags).ok_or(Refusal::Unsupported)?;
            if count > limits.sectors {
                return Err(Refusal::Invalid);
            }
            let len = u64::from(count) * SECTOR;
            let offset = self.range(sector, len)?;
            self.image.zero(offset, len, how)?;
        }
        self.sync_if_write_through()
    }

    fn sync_if_write_through(&mut self) -> Result<(), Refusal> {
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
        // However its file is opened, or a partition table that was made for sectors of this size is not found.
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

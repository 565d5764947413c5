//! The units of a disk that a guest sees.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use anyhow::{Context, Result, ensure};
use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget};

/// The unit of virtio-blk's addresses, in bytes.
pub const SECTOR: u64 = 512;
/// Largest block of a file system that is believed: a network's reports how much it likes to transfer.
const MAX_BLOCK: u64 = 64 << 10;
/// The block of most file systems.
const BLOCK: u64 = 4096;

/// The units of a disk, in bytes. How its file is opened does not change them: what is smaller than the host can take is
/// read and written with what is around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// A sector: partition tables count in these.
    pub sector: u64,
    /// What the host writes at least; smaller writes cost a read.
    pub block: u64,
    /// What the host discards at least, and the alignment of that.
    pub discard: u64,
}

impl Geometry {
    /// The geometry of a file or block device. A file's sectors have 512 bytes, a device's what they have, unless
    /// `sector` says otherwise.
    pub fn of(file: &File, sector: Option<u32>) -> Result<Self> {
        let status = file.metadata()?;
        let (own, block) = if status.file_type().is_block_device() {
            let sizes = ioctl_blksszget(file).and_then(|own| Ok((own, ioctl_blkpbszget(file)?)));
            let (own, block) = sizes.context("cannot find out its block size")?;
            (own, block.into())
        } else {
            (SECTOR as u32, if status.blksize() > MAX_BLOCK { BLOCK } else { status.blksize() })
        };
        let sector = u64::from(sector.unwrap_or(own));
        ensure!(
            sector >= SECTOR && sector.is_power_of_two(),
            "a sector cannot have {sector} bytes"
        );
        let block = if block.is_power_of_two() { block.max(sector) } else { sector };
        Ok(Self { sector, block, discard: block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    #[test]
    fn a_sector_of_a_file_has_512_bytes_unless_the_owner_says_otherwise() {
        let file = TempFile::new().unwrap().into_file();
        let own = Geometry::of(&file, None).unwrap();
        assert_eq!(own.sector, 512);
        assert_eq!((own.block, own.discard), (4096, 4096), "as of most file systems");
        assert_eq!(Geometry::of(&file, Some(4096)).unwrap(), Geometry { sector: 4096, ..own });
        for wrong in [0, 1, 256, 1000] {
            Geometry::of(&file, Some(wrong)).unwrap_err();
        }
    }
}

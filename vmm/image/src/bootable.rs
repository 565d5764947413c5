//! The kernel and the initrd that an image of a whole disk has for itself, as distributions put them there.
//!
//! The disk is a guest's: it is only read, by a crate without unsafe code, and how much of it is bounded.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, ensure};
use ext4_view::{Ext4, Ext4Error, Ext4Read, PathBuf};

use crate::partitions::{Partition, partitions};
use crate::shown;

/// Where kernels are: of the root partition, and of one that is mounted at /boot.
const FOLDERS: [&str; 2] = ["/boot", "/"];
const KERNEL: &str = "vmlinuz-";
/// What a root has.
const ROOTS: [&str; 3] = ["/sbin/init", "/etc/os-release", "/etc/fstab"];
/// Most files of a folder that are looked at, bytes of a file, and bytes that are read in all.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 1 << 30;
const MOST_READ: u64 = 4 << 30;
/// Most groups of blocks that a file system may say it has. Each takes memory before it is read; usual are 128 MiB.
const MOST_GROUPS: u64 = 1 << 20;

/// The newest kernel of a disk, with its initrd.
pub struct Bootable {
    files: Ext4,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    /// The number of the partition with the root folder, 0 if it is all of the disk.
    pub root: Option<u32>,
}

impl Bootable {
    /// Looks for it in the partitions of `disk` that have ext4, or in all of the disk.
    ///
    /// # Errors
    ///
    /// There is none, or the disk cannot be read.
    pub fn find(mut disk: &File) -> Result<Self> {
        // Also of a block device.
        let len = disk.seek(SeekFrom::End(0))?;
        let parts = partitions(disk, len).context("it has no partitions that can be read")?;
        let systems: Vec<_> =
            parts.iter().filter_map(|part| Some((part, open(disk, *part)?))).collect();
        ensure!(
            !systems.is_empty(),
            "it has no ext4 file system, where a kernel is looked for: name its kernel, initrd and --cmdline root="
        );
        let is_root = |files: &Ext4| ROOTS.iter().any(|path| files.exists(*path).unwrap_or(false));
        let root = systems.iter().find(|(_, files)| is_root(files)).map(|(part, _)| part.number);
        let kernels = systems.iter().flat_map(|(_, files)| kernels(files));
        let (version, folder, files) = kernels.max_by_key(|(version, ..)| order(version)).context(
            "it has no kernel named vmlinuz-VERSION in /boot: name one with --kernel FILE",
        )?;
        let initrd = initrds(&version).into_iter().map(|name| path(folder, &name));
        let initrd = initrd.filter_map(Result::ok).find(|path| files.exists(path).unwrap_or(false));
        Ok(Self {
            kernel: path(folder, &format!("{KERNEL}{version}"))?,
            initrd,
            root,
            files: files.clone(),
        })
    }

    /// Copies the kernel to `out`.
    pub fn write_kernel(&self, out: &File) -> Result<()> {
        copy(&self.files, &self.kernel, out)
    }

    /// Whether its kernel has an initrd.
    pub fn has_initrd(&self) -> bool {
        self.initrd.is_some()
    }

    /// Copies the initrd to `out`, if there is one.
    pub fn write_initrd(&self, out: &File) -> Result<()> {
        self.initrd.as_ref().map_or(Ok(()), |initrd| copy(&self.files, initrd, out))
    }
}

/// The versions of the kernels in `files`, and the folder of each.
fn kernels(files: &Ext4) -> impl Iterator<Item = (String, &'static str, &Ext4)> {
    FOLDERS.into_iter().flat_map(move |folder| {
        let entries =
            files.read_dir(folder).into_iter().flatten().take(MOST_FILES).map_while(Result::ok);
        let version = |name: &str| name.strip_prefix(KERNEL).map(String::from);
        let versions = entries.filter_map(move |entry| version(entry.file_name().as_str().ok()?));
        // Fedora's rescue kernel has a name that sorts last.
        let versions = versions.filter(|version| !version.contains("rescue"));
        versions.map(move |version| (version, folder, files))
    })
}

/// A key by which 6.1.0-9 comes before 6.1.0-10.
fn order(version: &str) -> Vec<(u64, String)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let runs = version.split_inclusive(|c| !is_digit(c));
    let split = |run: &str| {
        let end = run.find(|c| !is_digit(c)).unwrap_or(run.len());
        (run[..end].parse().unwrap_or(0), run[end..].to_owned())
    };
    runs.map(split).collect()
}

/// How Debian, Fedora, SUSE, Alpine and Arch name the initrd of a kernel.
fn initrds(version: &str) -> [String; 4] {
    ["initrd.img-V", "initramfs-V.img", "initrd-V", "initramfs-V"]
        .map(|name| name.replace('V', version))
}

fn path(folder: &str, name: &str) -> Result<PathBuf> {
    let path = format!("{}/{name}", folder.trim_end_matches('/'));
    PathBuf::try_from(path.as_bytes()).map_err(|_| anyhow!("a strange name: {}", shown(name)))
}

fn copy(files: &Ext4, path: &PathBuf, out: &File) -> Result<()> {
    let named = || shown(&path.display().to_string());
    let mut file = files.open(path).with_context(named)?;
    ensure!(
        file.metadata().len() <= MOST_BYTES,
        "{}: it is larger than {} MiB",
        named(),
        MOST_BYTES >> 20
    );
    let (mut out, mut piece) = (BufWriter::with_capacity(1 << 20, out), vec![0; 64 << 10]);
    loop {
        let len = file.read_bytes(&mut piece).with_context(named)?;
        if len == 0 {
            return Ok(out.flush()?);
        }
        out.write_all(&piece[..len])?;
    }
}

/// The file system of a partition, if it has one that can be read.
fn open(disk: &File, part: Partition) -> Option<Ext4> {
    let mut block = [0; 1024];
    disk.read_exact_at(&mut block, part.start.checked_add(1024)?).ok()?;
    if !is_plausible(&block) {
        return None;
    }
    let opened: Result<_, Ext4Error> =
        Ext4::load(Box::new(Piece { disk: disk.try_clone().ok()?, part, left: MOST_READ }));
    opened.inspect_err(|error| log::debug!("partition {}: {error}", part.number)).ok()
}

/// Whether a superblock has a number of groups of blocks that is not out of all proportion.
fn is_plausible(block: &[u8; 1024]) -> bool {
    let number = |at: usize| {
        u64::from(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
    };
    // s_blocks_count_lo and _hi, s_blocks_per_group (fs/ext4/ext4.h)
    let blocks = number(0x150) << 32 | number(4);
    blocks / number(32).max(1) < MOST_GROUPS
}

/// What the file system is read from.
struct Piece {
    disk: File,
    part: Partition,
    /// How many more bytes are read.
    left: u64,
}

impl Ext4Read for Piece {
    fn read(
        &mut self,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let len = bytes.len() as u64;
        self.left = self.left.checked_sub(len).ok_or("it has too much to be read")?;
        let end = start.checked_add(len).filter(|end| *end <= self.part.len);
        end.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(self.disk.read_exact_at(bytes, self.part.start + start)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_last() {
        let mut versions =
            ["6.1.0-10-amd64", "6.1.0-9-amd64", "6.12.3", "5.10", "6.1.0-9-amd64-dbg", "lts"];
        versions.sort_by_key(|version| order(version));
        assert_eq!(
            versions,
            ["lts", "5.10", "6.1.0-9-amd64", "6.1.0-9-amd64-dbg", "6.1.0-10-amd64", "6.12.3"]
        );
    }
}

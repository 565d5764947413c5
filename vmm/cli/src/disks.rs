//! The files of disks and of their overlays, opened by name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;
use tinyvmm::config::{DiskConfig, Overlay};
use tinyvmm::disk_image::DiskImage;
use tinyvmm::overlay::Layer;
use vmm_sys_util::tempfile::TempFile;

/// Opens and locks the disk that `config` describes: for one writer, or for any number of readers.
pub fn open(config: &DiskConfig) -> Result<DiskImage> {
    open_with(config, None)
}

/// The same; a temporary layer starts as `layer`.
pub fn open_with(config: &DiskConfig, layer: Option<&File>) -> Result<DiskImage> {
    let open = || -> Result<DiskImage> {
        let file = open_path(config).map_err(|error| explain_open(&error, config))?;
        let granularity = discard_granularity(&file);
        let mut image = DiskImage::new(file, config)?;
        if let Some(granularity) = granularity {
            image.set_discard(granularity);
        }
        match &config.overlay {
            None => {}
            Some(Overlay::Temporary) => {
                image.set_layer(|base, len| temporary_layer(base, len, layer))?
            }
            Some(Overlay::Kept(path)) => image.set_layer(|base, len| {
                let layer = kept_layer(path, base, len, config.unlocked);
                layer.with_context(|| format!("overlay {}", path.display()))
            })?,
        }
        Ok(image)
    };
    open().with_context(|| format!("disk {}", config.path.display()))
}

/// Refuses a file that two of `disks` use, by whatever names, if one of them writes to it: the lock would be taken for
/// another machine's.
pub fn ensure_apart(disks: &[DiskConfig]) -> Result<()> {
    let mut known = Vec::<(&Path, bool, (u64, u64))>::new();
    for disk in disks {
        let found = disk.files().filter_map(|(path, shared)| {
            // One that is not there is reported as it is opened.
            let status = fs::metadata(path).ok()?;
            let device = status.file_type().is_block_device();
            let id = if device { (0, status.rdev()) } else { (status.dev(), status.ino()) };
            Some((path, shared, id))
        });
        let found: Vec<_> = found.collect();
        for (path, shared, id) in &found {
            let other = known.iter().find(|(_, also, other)| other == id && !(*also && *shared));
            if let Some((other, ..)) = other {
                bail!(
                    "disk {}: another disk has this file, as {}: leave one out, or say readonly or overlay in both",
                    path.display(),
                    other.display()
                );
            }
        }
        known.extend(found);
    }
    Ok(())
}

/// The starts of files that are no raw disks: at which offset they have which bytes, and what they are.
const OTHER_FORMATS: [(u64, &[u8], &str); 6] = [
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"conectix", "a VHD image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK image"),
    (0x8001, b"CD001", ISO), // ECMA-119, 8.1
];
const ISO: &str = "an ISO image";

/// What the owner of the disk should hear about it, in a line each.
pub fn warnings(config: &DiskConfig, image: &DiskImage) -> Vec<String> {
    let mut warnings = Vec::new();
    if !image.locked() {
        warnings.push(
            "its file system has no locks: let no other machine write to it, and add ,lock=off"
                .into(),
        );
    }
    let is = |(offset, start, _): &&(u64, &[u8], _)| {
        image.peek(*offset, start.len() as u64).is_ok_and(|found| found == *start)
    };
    // The guest would write over it.
    let format = OTHER_FORMATS.iter().find(is).filter(|_| !config.is_shared());
    if let Some((_, _, what)) = format {
        let remedy = match *what {
            ISO => "add ,readonly",
            _ => "convert it, as in qemu-img convert -O raw",
        };
        warnings.push(format!("{what}, which the guest writes to as if it were raw: {remedy}"));
    }
    warnings
}

/// Opens and locks the file that takes the place of `image` while a machine runs.
pub fn replace(image: &DiskImage, config: &DiskConfig) -> Result<DiskImage> {
    let open = || -> Result<DiskImage> {
        let path = config.path.display();
        let words = "Error manipulating the backing file:";
        let file = open_path(config).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES) => anyhow!(
                "{words} {error} {path}: it has to be in a folder that a drive of the same kind was in when \
                 the machine started"
            ),
            _ => explain_open(&error, config).context(format!("{words} {error} {path}")),
        })?;
        image.replacement(file, config)
    };
    open().with_context(|| format!("disk {}", config.path.display()))
}

/// What a block device discards at least, in bytes. No ioctl has it.
fn discard_granularity(file: &File) -> Option<u64> {
    let status = file.metadata().ok().filter(|status| status.file_type().is_block_device())?;
    let (major, minor) = (libc::major(status.rdev()), libc::minor(status.rdev()));
    let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    let read = |name: &str| fs::read_to_string(device.join(name)).ok()?.trim().parse().ok();
    // A partition's queue is that of its disk.
    let granularity = read("queue/discard_granularity").or(read("../queue/discard_granularity"))?;
    Some(aligned(granularity, read("discard_alignment").unwrap_or(0)))
}

/// The largest unit in which whole units of `granularity` can be discarded that begin at `offset`: virtio-blk knows no
/// offset.
fn aligned(granularity: u64, offset: u64) -> u64 {
    if offset == 0 { granularity } else { aligned(offset, granularity % offset) }
}

/// The layer in the file at `path`, which is made if it does not exist.
fn kept_layer(path: &Path, base: &File, len: u64, unlocked: bool) -> Result<Layer> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = open_at_once(&mut options, 0, path).context("cannot open it for writing")?;
    let is_new = file.metadata()?.len() == 0;
    let layer = Layer::kept(file, base, len, unlocked)?;
    if is_new {
        sync_folder_of(path).context("cannot sync its folder")?;
    }
    Ok(layer)
}

fn temporary_layer(base: &File, len: u64, start: Option<&File>) -> Result<Layer> {
    let layer = || {
        let file = unnamed_file().with_context(|| {
            format!("cannot make a file in {}: set TMPDIR", std::env::temp_dir().display())
        })?;
        start.map_or(Ok(()), |start| copy(start, &file)).context("cannot copy it")?;
        Layer::temporary(file, base, len)
    };
    layer().context("temporary overlay")
}

/// Copies `from` to `to`, which is empty: holes stay holes.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break, // only a hole is left
            start => start?,
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let piece = &mut buffer[..(end - at).min(1 << 20) as usize];
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
    }
    to.set_len(len)
}

/// Copies `from`, a disk, to `to`, which is empty: by sharing its blocks where the file system can, else without holes.
#[cfg(feature = "api")]
pub fn copy_image(from: &File, to: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        Err(_) if from.metadata()?.is_file() => copy(from, to),
        // A block device has no holes to find.
        Err(_) => copy_all(from, to),
    }
}

#[cfg(feature = "api")]
fn copy_all(from: &File, to: &File) -> io::Result<()> {
    let len = seek(from, SeekFrom::End(0))?;
    let mut buffer = vec![0; 1 << 20];
    for at in (0..len).step_by(1 << 20) {
        let piece = &mut buffer[..(len - at).min(1 << 20) as usize];
        from.read_exact_at(piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(piece, at)?;
        }
    }
    to.set_len(len)
}

fn unnamed_file() -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every file system has O_TMPFILE; here the file has a name for an instant.
        Err(_) => Ok(TempFile::new_with_prefix(std::env::temp_dir().join("tinyvmm-"))?.into_file()),
    }
}

/// Makes the name of a new file survive a crash of the host.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn open_path(config: &DiskConfig) -> io::Result<File> {
    let (flags, mut options) = (if config.direct { libc::O_DIRECT } else { 0 }, OpenOptions::new());
    open_at_once(options.read(true).write(!config.is_shared()), flags, &config.path)
}

/// A named pipe is refused, later, instead of waited for.
fn open_at_once(options: &mut OpenOptions, flags: i32, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(flags | libc::O_NONBLOCK).open(path)?;
    // Of such a file io_uring either waits in the thread that submits (io_file_get_flags, io_uring/rw.c), where the
    // file system knows no other way, or fails with EAGAIN what the page cache lacks (io_prep_rw, Linux 5.10).
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(file)
}

fn explain_open(error: &io::Error, config: &DiskConfig) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EROFS | libc::EPERM) if !config.is_shared() => {
            anyhow!(
                "cannot open it for writing ({error}): add ,readonly or ,overlay, or change its \
                 permissions"
            )
        }
        Some(libc::EINVAL) if config.direct => {
            anyhow!("its file system has no direct I/O: leave ,direct out")
        }
        _ => anyhow!("cannot open it: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fcntl_getfl;

    #[test]
    fn discards_are_aligned_to_what_the_host_discards() {
        for (granularity, offset, unit) in [
            (4096, 0, 4096),
            (0, 0, 0), // a device that discards nothing
            (4 << 20, 1 << 20, 1 << 20),
            (192 << 10, 64 << 10, 64 << 10),
            (192 << 10, 0, 192 << 10),
        ] {
            assert_eq!(aligned(granularity, offset), unit);
        }
        assert_eq!(discard_granularity(&tempfile()), None);
    }

    fn tempfile() -> File {
        TempFile::new().unwrap().into_file()
    }

    #[test]
    fn requests_to_the_files_of_a_disk_may_wait() {
        let (disk, layer) = (TempFile::new().unwrap(), TempFile::new().unwrap());
        disk.as_file().set_len(4096).unwrap();
        let config = DiskConfig::new(disk.as_path().into());
        let base = open_path(&config).unwrap();
        let layer = kept_layer(layer.as_path(), &base, 4096, false).unwrap();
        for file in [&base, &**layer.file()] {
            assert!(!fcntl_getfl(file).unwrap().contains(OFlags::NONBLOCK));
        }
    }
}

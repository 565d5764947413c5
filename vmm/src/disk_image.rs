//! A disk's file or block device on the host: opened, locked, read, written, punched.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};

use crate::config::{Aio, DiskConfig};
use crate::engine::ring::Ring;
use crate::engine::{Engine, Kind};
use crate::flock;
use crate::geometry::{Geometry, SECTOR};
use crate::memory::buffers::Buffers;
use crate::overlay::Layer;
use crate::pieces::{self, Zero};
use crate::sync;

/// An open disk image. Its format is raw: contents are never interpreted.
pub struct DiskImage {
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    readonly: bool,
    direct: bool,
    /// The unit of O_DIRECT in bytes; without O_DIRECT a sector.
    unit: u64,
    /// As well as its owner wants it.
    locked: bool,
    /// What the guest sees.
    geometry: Geometry,
    /// The layer that takes the writes, if there is one.
    layer: Option<Layer>,
    /// A flush has failed: the host reports that once, and the data is lost (fsync(2)).
    flush_failed: Arc<AtomicBool>,
    /// Kinds of errors that were logged, in all boots of the machine.
    logged: Arc<Mutex<Vec<io::ErrorKind>>>,
    /// Keeps many requests going, in all boots of the machine.
    ring: Option<Arc<Mutex<Ring>>>,
}

/// How a read, write or flush is done.
pub enum Way {
    /// By a job on this file, from this offset on.
    Job(Arc<File>, u64),
    /// By the image, while nothing else is in flight.
    Alone,
}

impl DiskImage {
    /// Locks `file`, a file or block device that is open as `config` says: for one writer, or for any number of
    /// readers.
    pub fn new(file: File, config: &DiskConfig) -> Result<Self> {
        let geometry = Geometry::of(&file, config.sector)?;
        Self::of_other_file(file, config, geometry, open_ring(config.aio)?)
    }

    fn of_other_file(
        file: File,
        config: &DiskConfig,
        geometry: Geometry,
        ring: Option<Arc<Mutex<Ring>>>,
    ) -> Result<Self> {
        let kind = file.metadata()?.file_type();
        ensure!(kind.is_file() || kind.is_block_device(), "neither a file nor a block device");
        let locked = lock(&file, config)?;
        Ok(Self { locked, ..Self::of_file(file.into(), config, geometry, ring)? })
    }

    /// Adds a layer that takes the writes.
    pub fn set_layer(&mut self, layer: impl FnOnce(&File, u64) -> Result<Layer>) -> Result<()> {
        let layer = layer(&self.file, self.len)?;
        let block = self.geometry.sector.max(layer.block());
        self.geometry = Geometry { block, discard: block, ..self.geometry };
        self.layer = Some(layer);
        Ok(())
    }

    /// Sets what the host discards at least, where that is known to whoever opened the file.
    pub fn set_discard(&mut self, granularity: u64) {
        let granularity = granularity.max(self.geometry.sector);
        if self.layer.is_none() && granularity.is_multiple_of(self.geometry.sector) {
            self.geometry.discard = granularity;
        }
    }

    /// `file` is locked.
    fn of_file(
        file: Arc<File>,
        config: &DiskConfig,
        geometry: Geometry,
        ring: Option<Arc<Mutex<Ring>>>,
    ) -> Result<Self> {
        let kind = file.metadata()?.file_type();
        let len = (&*file).seek(SeekFrom::End(0)).context("cannot find out its size")?;
        let unit = match (config.direct, kind.is_block_device()) {
            (false, _) => SECTOR as u32,
            (true, true) => ioctl_blksszget(&file).context("cannot find out its block size")?,
            (true, false) => direct_unit(&file),
        };
        let unit = u64::from(unit);
        ensure!(
            unit <= pieces::MAX_PIECE as u64,
            "direct I/O of its file system has a unit of {unit} bytes: leave ,direct out"
        );
        ensure!(len > 0, "empty: give it a size, as in truncate -s 1G");
        // Both are powers of two.
        let least = unit.max(geometry.sector);
        let how = match least {
            _ if unit > geometry.sector => ", or leave ,direct out",
            SECTOR => "",
            _ => ", or say ,sector=512",
        };
        ensure!(
            len.is_multiple_of(least),
            "its size of {len} bytes is not a multiple of {least}: use truncate -s %{least} on it{how}"
        );
        let (readonly, direct) = (config.readonly, config.direct);
        let path = config.path.clone();
        let (flush_failed, logged) = Default::default();
        let layer = None;
        Ok(Self {
            file,
            path,
            len,
            readonly,
            direct,
            unit,
            locked: true,
            geometry,
            layer,
            flush_failed,
            logged,
            ring,
        })
    }

    /// An image of `file`, open as `config` says, that takes the place of this one: the guest goes on to see the same
    /// units. If it is the same file, its size is read again.
    pub fn replacement(&self, file: File, config: &DiskConfig) -> Result<Self> {
        ensure!(self.layer.is_none(), "it has an overlay, which belongs to its file");
        let (old, new) = (self.file.metadata()?, file.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            // The lock is that of the file as it was opened first.
            let same = Self::of_file(self.file.clone(), config, self.geometry, self.ring.clone())?;
            return Ok(Self { locked: self.locked, ..same });
        }
        Self::of_other_file(file, config, self.geometry, self.ring.clone())
    }

    /// The same image for the next boot of the machine, after the last one has ended; all clones share the lock.
    pub fn try_clone(&self) -> Result<Self> {
        let clone = || -> Result<Self> {
            let layer = self.layer.as_ref().map(Layer::try_clone).transpose()?;
            let (flush_failed, logged) = (self.flush_failed.clone(), self.logged.clone());
            let (file, path, ring) = (self.file.clone(), self.path.clone(), self.ring.clone());
            Ok(Self { file, path, layer, flush_failed, logged, ring, ..*self })
        };
        clone().with_context(|| format!("disk {}", self.path.display()))
    }

    /// The same image, of another file: one that fails, or does not answer. No page cache is asked first.
    #[cfg(test)]
    pub fn on_file(self, file: File) -> Self {
        Self { file: file.into(), direct: true, ..self }
    }

    /// Size in bytes, a multiple of the sector and of the unit of O_DIRECT.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The units that the guest sees.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether it goes around the host's page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Whether writes have to be refused.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file of the layer that takes the writes, if there is one, with all that was written.
    pub fn layer(&mut self) -> io::Result<Option<&File>> {
        let Some(layer) = &mut self.layer else { return Ok(None) };
        layer.write_out()?;
        Ok(Some(layer.file()))
    }

    /// Whether it is locked as well as its owner wants it: some file systems have no locks.
    pub fn locked(&self) -> bool {
        self.locked
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs the first error of its kind: the guest sees all of them, and a guest that causes one in each of its boots
    /// must not fill the host's logs.
    pub fn log(&self, name: &str, error: &io::Error) {
        let mut logged = sync::lock(&self.logged);
        if !logged.contains(&error.kind()) {
            logged.push(error.kind());
            log::error!("{name}: {}: {error}", self.path.display());
        }
    }

    /// An engine for its jobs.
    pub fn engine(&self) -> io::Result<Engine> {
        Engine::new(self.ring.as_ref())
    }

    /// How `len` bytes at `offset` are read or written, or all is flushed.
    pub fn way(&self, kind: Kind, offset: u64, len: u64) -> Way {
        let range = offset..offset + len;
        if let Some(layer) = &self.layer {
            let in_layer = match kind {
                Kind::Read => layer.reads_from_one(&range),
                Kind::Write => layer.takes_whole(&range).then_some(true),
                Kind::Flush => None,
            };
            return match in_layer {
                None => Way::Alone,
                Some(true) => Way::Job(layer.file().clone(), layer.place(offset)),
                Some(false) => Way::Job(self.file.clone(), offset),
            };
        }
        let has_failed = kind == Kind::Flush && self.flush_failed.load(Ordering::SeqCst);
        let is_cut = !(offset | len).is_multiple_of(self.unit); // what is around it is read and written, too
        if has_failed || is_cut { Way::Alone } else { Way::Job(self.file.clone(), offset) }
    }

    /// A job has written `len` bytes at `offset`.
    pub fn has_written(&mut self, offset: u64, len: u64) {
        if let Some(layer) = &mut self.layer {
            layer.has_taken(&(offset..offset + len));
        }
    }

    /// A job could not flush: no later flush succeeds.
    pub fn has_failed_to_flush(&self) {
        self.flush_failed.store(true, Ordering::SeqCst);
    }

    /// The `len` bytes at `offset` of the file, or fewer at its end.
    pub fn peek(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let range = offset.min(self.len)..self.len.min(offset + len);
        pieces::read(&self.file, self.unit, range, |part| bytes.extend(part))?;
        Ok(bytes)
    }

    /// Reads into all of `data` from `offset`.
    pub fn read(&self, mut data: Buffers, offset: u64) -> io::Result<()> {
        if let Some(layer) = &self.layer {
            return layer.read(&self.file, data, offset);
        }
        match data.clone().read_from_file(&self.file, offset) {
            Err(error) if self.wants_bounce(&error) => {
                let range = offset..offset + data.len() as u64;
                let take = |part: &[u8]| _ = data.take(part.len()).copy_from(part);
                pieces::read(&self.file, self.unit, range, take)
            }
            result => result,
        }
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&mut self, mut data: Buffers, offset: u64) -> io::Result<()> {
        if let Some(layer) = &mut self.layer {
            return layer.write(&self.file, data, offset);
        }
        match data.clone().write_to_file(&self.file, offset) {
            Err(error) if self.wants_bounce(&error) => {
                let range = offset..offset + data.len() as u64;
                let fill = |part: &mut [u8]| data.take(part.len()).copy_to(part);
                pieces::write(&self.file, self.unit, range, fill)
            }
            result => result,
        }
    }

    /// O_DIRECT refuses with EINVAL what is not aligned (open(2)): guest buffers, or sectors within its unit.
    pub fn wants_bounce(&self, error: &io::Error) -> bool {
        self.direct && error.raw_os_error() == Some(libc::EINVAL)
    }

    /// Makes what was written survive a crash of the host.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.flush_failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush failed"));
        }
        let result = match &mut self.layer {
            Some(layer) => layer.sync(),
            None => self.file.sync_data(),
        };
        if result.is_err() {
            self.flush_failed.store(true, Ordering::SeqCst);
        }
        result
    }

    /// Zeroes or discards `len` bytes at `offset`. Discard is a hint (virtio 1.2, 5.2.6.2): where the file system
    /// cannot free space, the bytes stay.
    pub fn zero(&mut self, offset: u64, len: u64, how: Zero) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let range = offset..offset + len;
        let done = match &mut self.layer {
            Some(layer) => layer.zero(&self.file, range, how),
            None => pieces::zero(&self.file, self.unit, range, how),
        };
        match done {
            Err(e) if how == Zero::Discard && e.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }
}

/// Opens the disk that `config` describes.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub fn open(config: &DiskConfig) -> Result<DiskImage> {
    let mut options = File::options();
    let flags = if config.direct { libc::O_DIRECT } else { 0 };
    let options = options.read(true).write(!config.is_shared());
    let options = std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags);
    DiskImage::new(options.open(&config.path)?, config)
}

/// An io_uring, if `aio` wants one and the host has it.
fn open_ring(aio: Aio) -> Result<Option<Arc<Mutex<Ring>>>> {
    let ring = match aio {
        Aio::Threads => return Ok(None),
        Aio::IoUring => Ring::new().context("no io_uring: say aio=threads, or leave aio out")?,
        Aio::Auto => match Ring::new() {
            Ok(ring) => ring,
            Err(error) => {
                log::debug!("disk: no io_uring: {error}");
                return Ok(None);
            }
        },
    };
    Ok(Some(Arc::new(Mutex::new(ring))))
}

/// The unit of O_DIRECT on a file, if its file system reports one (since Linux 6.1).
fn direct_unit(file: &File) -> u32 {
    let status = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let unit = status.map_or(0, |status| status.stx_dio_offset_align);
    if unit >= SECTOR as u32 { unit } else { pieces::ALIGN as u32 }
}

/// Whether it is locked now, if it is to be.
fn lock(file: &File, config: &DiskConfig) -> Result<bool> {
    let remedy = match config.is_shared() {
        true => " that writes to it: stop that one",
        false => ": stop that one, or use a copy, or ,overlay in both",
    };
    Ok(config.unlocked || flock::lock(file, config.is_shared(), remedy)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::virtio::test_log;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
    use vmm_sys_util::tempfile::TempFile;

    #[test]
    fn sectors_within_a_unit_of_direct_io_are_written_with_what_is_around_them() {
        let file = TempFile::new().unwrap();
        std::fs::write(file.as_path(), [1; 8192]).unwrap();
        let config = DiskConfig { direct: true, ..DiskConfig::new(file.as_path().into()) };
        let Ok(mut image) = open(&config) else {
            return eprintln!("skipped: no O_DIRECT in {}", std::env::temp_dir().display());
        };
        image.unit = 4096; // as on a device with such sectors
        let ram = memory::of_ranges(&[(0, 8192)]);
        ram.write_slice(&[2; 1536], GuestAddress(1)).unwrap(); // at no alignment, which O_DIRECT refuses
        let buffers = |len| {
            let mut buffers = Buffers::default();
            let slices = ram.get_slices(GuestAddress(1), len);
            slices.for_each(|slice| buffers.push(slice.unwrap()));
            buffers
        };
        image.write(buffers(1536), 3584).unwrap();
        let mut expected = [1; 8192];
        expected[3584..5120].fill(2);
        assert_eq!(std::fs::read(file.as_path()).unwrap(), expected);
        image.read(buffers(1024), 3072).unwrap();
        let mut found = [0; 1024];
        ram.read_slice(&mut found, GuestAddress(1)).unwrap();
        assert_eq!(found, expected[3072..4096]);
    }

    #[test]
    fn an_error_in_each_of_a_machines_lives_is_logged_once_for_its_kind() {
        test_log::keep();
        let file = TempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let image = open(&DiskConfig::new(file.as_path().into())).unwrap();
        let (full, broken) = (io::ErrorKind::StorageFull, io::ErrorKind::Other);
        for kind in [full, full, broken, full, broken] {
            image.try_clone().unwrap().log("disk0", &kind.into());
        }
        assert_eq!(test_log::count(&file.as_path().display().to_string()), 2);
    }

    #[test]
    fn a_discard_of_what_cannot_be_given_back_succeeds() {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut image = open(&DiskConfig::new(file.as_path().into())).unwrap();
        // A file without fallocate(2).
        image.file = File::options().read(true).write(true).open("/proc/self/comm").unwrap().into();
        image.zero(0, 4096, Zero::Discard).unwrap();
    }

    #[test]
    fn what_a_flush_could_not_write_stays_lost_after_a_reset() {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let config = DiskConfig::new(file.as_path().into());
        let image = DiskImage::new(file.as_file().try_clone().unwrap(), &config).unwrap();
        let mut first = image.try_clone().unwrap();
        first.flush().unwrap();
        first.flush_failed.store(true, Ordering::SeqCst); // as a disk that breaks would
        first.flush().unwrap_err();
        image.try_clone().unwrap().flush().unwrap_err();
    }
}

//! The cache of unpacked kernels, in `$XDG_CACHE_HOME/tinyvmm/kernels`.
//!
//! An entry is named by the BLAKE3 hash of its bzImage, and holds the unpacked kernel, followed by checksums. An entry
//! appears whole, by a rename.

#[cfg(feature = "image")]
mod disks;
mod notes;

use std::env;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock, fstat,
    futimens, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use tinyvmm::arch::kernel::elf::Image;
use tinyvmm::arch::kernel::{Kept, KernelStore, Unpack};
use tinyvmm::random;

pub use self::notes::look;

/// Most bytes of all entries; beyond that the least recently used ones are removed.
const MAX_BYTES: u64 = 1 << 30;
/// Most notes that are kept.
const MAX_NOTES: usize = 256;
/// Most checksums of a kernel, one for each piece of it: enough for 3 GiB in huge pages.
const MAX_SUMS: usize = 4096;
/// How long to wait for another process that unpacks, before unpacking the kernel beside it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The last bytes of an entry: the version of its format.
const MAGIC: [u8; 8] = *b"tinyvmk3";
/// Length of the image, number of checksums, `MAGIC`.
const FOOTER: u64 = 24;
const UNFINISHED: &str = "new-";
const KERNELS: &str = "kernels";

/// The cache's folder, which belongs to this user and nobody else can write to.
pub struct Cache {
    dir: OwnedFd,
    /// Where that is.
    #[cfg_attr(
        not(feature = "image"),
        expect(dead_code, reason = "disks are opened by their paths")
    )]
    path: PathBuf,
    max_bytes: u64,
}

/// A file in the cache that is being written. Dropping it removes it.
pub struct Unfinished<'a> {
    cache: &'a Cache,
    name: String,
    file: File,
}

/// A kernel in the cache, or a disk.
pub struct CachedKernel {
    /// The entry's name: the BLAKE3 hash of its bzImage in hexadecimal, or what a disk is known by.
    pub key: String,
    /// Bytes on the disk.
    pub size: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Where the bzImage or the image was then. Another file may be there by now.
    pub path: Option<PathBuf>,
}

/// The cache as the machine sees it, for one bzImage. It is opened at the first request.
pub struct Store {
    /// The path of the bzImage.
    path: PathBuf,
    opened: OnceLock<Option<(Cache, String)>>,
}

impl Store {
    /// The store for the bzImage at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, opened: OnceLock::new() }
    }

    /// The cache, and the key of `bzimage` in it.
    fn open(&self, bzimage: &File) -> Option<&(Cache, String)> {
        let open = || {
            let cache = Cache::open()?;
            let key = cache.key(bzimage)?;
            anyhow::Ok((cache, key))
        };
        let no_cache = |error: anyhow::Error| log::debug!("no kernel cache: {error:#}");
        self.opened.get_or_init(|| open().map_err(no_cache).ok()).as_ref()
    }
}

impl KernelStore for Store {
    fn find(&self, bzimage: &File) -> Option<Image> {
        let (cache, key) = self.open(bzimage)?;
        let image = cache.find(key)?;
        cache.note_path(key, &self.path);
        Some(image)
    }

    fn forget(&self, bzimage: &File) {
        if let Some((cache, key)) = self.open(bzimage) {
            cache.remove(key);
        }
    }

    fn keep(&self, bzimage: &File, unpack: &mut Unpack) -> Result<Kept> {
        let (cache, key) = self.open(bzimage).context("there is none")?;
        let _lock = cache.lock();
        // Another process may have inserted it first.
        if let Some(image) = cache.find(key) {
            return Ok(Kept { image, kept: cache.find(key) });
        }
        let unfinished = cache.begin()?;
        let image = unpack(unfinished.file().try_clone()?)?;
        if let Err(error) = cache.insert(unfinished, key, &image) {
            log::debug!("kernel cache: cannot keep this kernel: {error:#}");
        }
        cache.note_path(key, &self.path);
        Ok(Kept { image, kept: cache.find(key) })
    }
}

impl Cache {
    /// Opens the cache of this user, and makes its folder if there is none.
    pub fn open() -> Result<Self> {
        Self::open_in(&base()?, KERNELS, MAX_BYTES)
    }

    /// Opens the cache of this user, if there is one.
    pub fn open_if_there() -> Result<Option<Self>> {
        folder(KERNELS)?.try_exists()?.then(Self::open).transpose()
    }

    fn open_in(base: &Path, folder: &str, max_bytes: u64) -> Result<Self> {
        let path = base.join("tinyvmm").join(folder);
        Ok(Self { dir: open_folder(base, folder)?, path, max_bytes })
    }

    /// The entry of this name, if there is one; its contents are not checked yet.
    pub fn find(&self, key: &str) -> Option<Image> {
        let file = self.open_file(key).ok()?;
        note_use(&file);
        let image = read_entry(file);
        if image.is_none() {
            log::debug!("kernel cache: {key}: damaged");
        }
        image
    }

    /// Inserts `image`, the contents of `unfinished`; removes other entries if there is no room.
    pub fn insert(&self, unfinished: Unfinished, key: &str, image: &Image) -> Result<()> {
        let sums = image.sums()?;
        ensure!(sums.len() <= MAX_SUMS, "too large");
        let sum_count = sums.len() as u64;
        let sums = sums.iter().flat_map(|sum| sum.to_le_bytes());
        let footer = [image.size().to_le_bytes(), sum_count.to_le_bytes(), MAGIC];
        let tail: Vec<u8> = sums.chain(footer.into_iter().flatten()).collect();
        unfinished.file().write_all_at(&tail, image.size())?;
        unfinished.finish(key)?;
        self.shrink(0)
    }

    /// Begins a file that appears whole or not at all.
    pub fn begin(&self) -> Result<Unfinished<'_>> {
        let name = unfinished_name()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Unfinished { cache: self, name, file })
    }

    /// Removes a file of the cache.
    pub fn remove(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::empty());
    }

    /// Lets one process at a time unpack, for 10 s at most. Dropping the result releases the lock.
    pub fn lock(&self) -> Option<OwnedFd> {
        let dir = open_dir(&self.dir, ".", OFlags::empty()).ok()?;
        let step = Duration::from_millis(5);
        for _ in 0..PATIENCE.as_millis() / step.as_millis() {
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(dir),
                Err(Errno::WOULDBLOCK | Errno::INTR) => sleep(step),
                Err(_) => return None,
            }
        }
        None
    }

    /// All entries, the most recently used first.
    pub fn entries(&self) -> Result<Vec<CachedKernel>> {
        let mut entries = self.files(is_key)?;
        entries.iter_mut().for_each(|entry| entry.path = self.noted_path(&entry.key));
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// Removes all files of the cache.
    pub fn clear(&self) -> Result<()> {
        let ours = |name: &str| {
            is_key(name)
                || [notes::FILE, notes::PATH, UNFINISHED].iter().any(|ours| name.starts_with(ours))
        };
        self.files(ours)?.iter().for_each(|file| self.remove(&file.key));
        Ok(())
    }

    /// Removes old unfinished files, and the least recently used entries above the limit, but for the `spared` newest ones.
    fn shrink(&self, spared: usize) -> Result<()> {
        // A process that still writes one keeps it open, and cannot rename it then: no harm is done.
        let old = |file: &CachedKernel| file.used.elapsed().is_ok_and(|age| age > PATIENCE * 6);
        let unfinished = self.files(|name| name.starts_with(UNFINISHED))?;
        unfinished.iter().filter(|file| old(file)).for_each(|file| self.remove(&file.key));
        let mut bytes = 0;
        for (index, entry) in self.entries()?.iter().enumerate() {
            bytes += entry.size;
            if bytes > self.max_bytes && index >= spared {
                self.remove(&entry.key);
            }
        }
        let kept = self.files(is_key)?;
        let is_left = |name: &str| {
            name.strip_prefix(notes::PATH)
                .is_some_and(|key| kept.iter().all(|entry| entry.key != key))
        };
        self.files(is_left)?.iter().for_each(|name| self.remove(&name.key));
        let mut notes = self.files(|name| name.starts_with(notes::FILE))?;
        notes.sort_by_key(|note| std::cmp::Reverse(note.used));
        notes.iter().skip(MAX_NOTES).for_each(|note| self.remove(&note.key));
        Ok(())
    }

    fn files(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<CachedKernel>> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // Another process may have removed it meanwhile.
            let Ok(stat) = statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if wanted(&name) {
                let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
                let used = Duration::new(seconds, stat.st_mtime_nsec as u32);
                let size = stat.st_blocks.unsigned_abs() * 512;
                let used = SystemTime::UNIX_EPOCH + used;
                files.push(CachedKernel { key: name, size, used, path: None });
            }
        }
        Ok(files)
    }

    fn open_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::empty())?;
        ensure_ours(&file)?;
        let file = File::from(file);
        ensure!(file.metadata()?.is_file(), "not a file");
        Ok(file)
    }
}

impl Unfinished<'_> {
    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn finish(self, name: &str) -> Result<()> {
        Ok(renameat(&self.cache.dir, &self.name, &self.cache.dir, name)?)
    }
}

impl Drop for Unfinished<'_> {
    /// After `finish` no file has this name any more.
    fn drop(&mut self) {
        self.cache.remove(&self.name);
    }
}

/// Reads an entry's footer; `None` if the entry is damaged.
fn read_entry(mut file: File) -> Option<Image> {
    let end = file.seek(SeekFrom::End(0)).ok()?;
    let footer_at = end.checked_sub(FOOTER)?;
    let mut footer = [[0; 8]; 3];
    file.read_exact_at(footer.as_flattened_mut(), footer_at).ok()?;
    let [len, count, magic] = footer;
    let (len, count) = (u64::from_le_bytes(len), usize::try_from(u64::from_le_bytes(count)).ok()?);
    let sums_at = (count <= MAX_SUMS).then_some(footer_at)?.checked_sub(count as u64 * 8)?;
    if magic != MAGIC || len != sums_at {
        return None;
    }
    let mut sums = vec![0; count * 8];
    file.read_exact_at(&mut sums, sums_at).ok()?;
    let sums = sums.as_chunks().0.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
    Some(Image::checked(file, len, sums))
}

/// Notes the time of use, by which the least recently used entry is found.
fn note_use(file: &File) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = futimens(file, &Timestamps { last_access: now, last_modification: now });
}

fn unfinished_name() -> Result<String> {
    Ok(format!("{UNFINISHED}{:016x}", u64::from_le_bytes(random::bytes()?)))
}

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// Where the folder `name` of this user's caches is, or would be.
pub fn folder(name: &str) -> Result<PathBuf> {
    Ok(base()?.join("tinyvmm").join(name))
}

/// Makes the folder `name` of this user's caches if there is none, and returns its path. Nobody else can write there.
pub fn make_folder(name: &str) -> Result<PathBuf> {
    open_folder(&base()?, name)?;
    folder(name)
}

fn open_folder(base: &Path, name: &str) -> Result<OwnedFd> {
    std::fs::create_dir_all(base).with_context(|| format!("{}", base.display()))?;
    let mut dir = open_dir(CWD, base, OFlags::empty())?;
    for name in ["tinyvmm", name] {
        match mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("mkdir {name}")),
        }
        dir = open_dir(&dir, name, OFlags::NOFOLLOW).with_context(|| name.to_owned())?;
        ensure_ours(&dir).with_context(|| name.to_owned())?;
    }
    Ok(dir)
}

/// The folder for caches (XDG Base Directory Specification).
fn base() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || Some(absolute("HOME")?.join(".cache"));
    absolute("XDG_CACHE_HOME").or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")
}

fn open_dir(
    at: impl rustix::fd::AsFd,
    path: impl rustix::path::Arg,
    more: OFlags,
) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn ensure_ours(file: &OwnedFd) -> Result<()> {
    let stat = fstat(file)?;
    ensure!(stat.st_uid == rustix::process::geteuid().as_raw(), "belongs to another user");
    ensure!(stat.st_mode & 0o022 == 0, "others may write to it: chmod go-w");
    Ok(())
}

#[cfg(test)]
mod tests;

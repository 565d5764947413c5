//! Notes beside the entries: the key of a bzImage on the disk, so that it is not hashed each time, and the path of an
//! entry's bzImage when it was last booted, so that people recognize it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{fstatfs, readlinkat, renameat, symlinkat};

use super::{Cache, is_key, unfinished_name};

/// A file that was changed this recently may change again without looking different.
const SETTLED: Duration = Duration::from_secs(3);
/// `FUSE_SUPER_MAGIC` (include/uapi/linux/magic.h).
const FUSE: i64 = 0x6573_5546;
/// The prefix of a note with the key of a file; the rest of the name is the file's metadata.
pub const FILE: &str = "file-";
/// The prefix of a link to an entry's bzImage; the rest of the name is the key.
pub const PATH: &str = "name-";

impl Cache {
    /// The key of the bzImage in `file`.
    pub fn key(&self, file: &File) -> Result<String> {
        let note = note_name(file)?;
        if let Some(key) = self.read_note(&note) {
            return Ok(key);
        }
        let key = hash(file).context("cannot read it")?.to_hex().to_string();
        if note_name(file)? == note
            && is_settled(file)?
            && let Err(error) = self.write_note(&note, &key)
        {
            log::debug!("kernel cache: cannot note what a file is: {error:#}");
        }
        Ok(key)
    }

    fn read_note(&self, name: &str) -> Option<String> {
        let mut key = String::new();
        self.open_file(name).ok()?.take(65).read_to_string(&mut key).ok()?;
        is_key(&key).then_some(key)
    }

    fn write_note(&self, name: &str, key: &str) -> Result<()> {
        let unfinished = self.begin()?;
        unfinished.file().write_all(key.as_bytes())?;
        unfinished.finish(name)
    }

    /// Notes that the bzImage of the entry `key` is at `path`. Only people read that: nothing opens it.
    pub fn note_path(&self, key: &str, path: &Path) {
        let name = format!("{PATH}{key}");
        let Ok(path) = std::path::absolute(path) else { return };
        if self.noted_path(key).as_deref() == Some(&path) {
            return;
        }
        // A link is replaced, as it cannot be changed. A path that is too long for a link is not noted.
        let noted = unfinished_name().and_then(|new| {
            symlinkat(&path, &self.dir, &new)?;
            let renamed = renameat(&self.dir, &new, &self.dir, &name);
            renamed.inspect_err(|_| self.remove(&new))?;
            Ok(())
        });
        if let Err(error) = noted {
            log::debug!("kernel cache: cannot note a kernel's path: {error:#}");
        }
    }

    pub(super) fn noted_path(&self, key: &str) -> Option<PathBuf> {
        let path = readlinkat(&self.dir, format!("{PATH}{key}"), Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }
}

pub(super) fn hash(file: &File) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut bytes, at)? {
            0 => return Ok(hasher.finalize()),
            len => {
                hasher.update(&bytes[..len]);
                at += len as u64;
            }
        }
    }
}

/// The name of a file's note: metadata that changes with the contents.
pub(super) fn note_name(file: &File) -> Result<String> {
    let m = file.metadata()?;
    let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
    let identity = format!("{:x}-{:x}-{:x}", m.dev(), m.ino(), m.size());
    Ok(format!("{FILE}{identity}-{:x}.{:x}-{:x}.{:x}", mtime.0, mtime.1, ctime.0, ctime.1))
}

/// Metadata of `file` that changes with its contents; `None` if it cannot be trusted for that.
pub fn look(file: &File) -> Result<Option<String>> {
    let look = note_name(file)?;
    Ok(is_settled(file)?.then_some(look))
}

/// Whether the metadata can be trusted: not if the file has just changed, nor on FUSE, which is a program of any user.
fn is_settled(file: &File) -> Result<bool> {
    let metadata = file.metadata()?;
    let changed = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0));
    let age = (SystemTime::UNIX_EPOCH + changed).elapsed();
    Ok(age.is_ok_and(|age| age > SETTLED) && fstatfs(file)?.f_type != FUSE)
}

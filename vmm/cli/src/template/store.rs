//! The templates of this user, in `$XDG_CACHE_HOME/tinyvmm/templates`. Each is a snapshot in a folder whose name is its key,
//! with a seal: by what its files are known to be as they were made.
//!
//! Who uses a template holds a lock on its state until its files are open; who makes one holds a lock on the folder
//! `new-KEY`, in which it is until it is whole. So what a killed process leaves is known, and removed.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use serde::{Deserialize, Serialize};
use tinyvmm::config::MachineConfig;

use super::key::LEN;
use crate::kernel_cache;
use crate::snapshot::STATE;

/// The folder below the caches.
const FOLDER: &str = "templates";
/// Most templates, and most bytes of all: the least recently used one goes.
const MOST: usize = 16;
const MOST_BYTES: u64 = 4 << 30;
const UNFINISHED: &str = "new-";
const SEAL: &str = "seal";
/// Most bytes of a seal.
const MOST_OF_SEAL: u64 = 64 << 10;
/// How long `clear` waits for a machine that starts of a template.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(5);
/// In the folder of one that is made: a folder for the socket of its machine, whose process locks that.
const PLACE: &str = "m";
/// The snapshot there.
const SNAPSHOT: &str = "snapshot";

/// All templates of a user.
pub struct Store {
    path: PathBuf,
    most: usize,
    most_bytes: u64,
}

/// A template that is being made. Dropping it removes it.
pub struct Unfinished<'a> {
    store: &'a Store,
    key: &'a str,
    folder: PathBuf,
    _lock: File,
}

/// A template, as people see it.
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Bytes on the disk.
    pub size: u64,
    /// When a machine was last made of it.
    pub used: SystemTime,
    /// Its kernel.
    pub kernel: Option<PathBuf>,
}

#[derive(Default, Serialize, Deserialize)]
struct Seal {
    kernel: Option<PathBuf>,
    files: Vec<(String, FileLook)>,
}

/// What changes with a file: its size, its inode, and the times of its last changes.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct FileLook(u64, u64, [(i64, i64); 2]);

impl FileLook {
    fn of(path: &Path) -> Result<Self> {
        let status = path.symlink_metadata()?;
        let times = [(status.mtime(), status.mtime_nsec()), (status.ctime(), status.ctime_nsec())];
        Ok(Self(status.size(), status.ino(), times))
    }
}

impl Store {
    /// Opens it, and makes its folder if there is none.
    pub fn open() -> Result<Self> {
        let path = kernel_cache::make_folder(FOLDER)?;
        Ok(Self { path, most: MOST, most_bytes: MOST_BYTES })
    }

    /// Opens it if it is there.
    pub fn open_if_there() -> Result<Option<Self>> {
        kernel_cache::folder(FOLDER)?.try_exists()?.then(Self::open).transpose()
    }

    /// The template `key`, if it is there: its folder, and a lock with which its files stay.
    ///
    /// # Errors
    ///
    /// It is damaged.
    pub fn find(&self, key: &str) -> Result<Option<(PathBuf, File)>> {
        let folder = self.path.join(key);
        if !folder.try_exists()? {
            return Ok(None);
        }
        let lock = File::open(folder.join(STATE)).context(STATE)?;
        if lock.try_lock_shared().is_err() {
            return Ok(None); // it is being removed
        }
        for (name, look) in read_seal(&folder)?.files {
            let now = FileLook::of(&folder.join(&name)).with_context(|| name.clone())?;
            ensure!(now == look, "it is damaged: {name} was changed");
        }
        // The time of use, by which the least recently used one is found.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        futimens(File::open(&folder)?, &times)?;
        Ok(Some((folder, lock)))
    }

    /// Begins to make the template `key`; `None` if another process does.
    pub fn begin<'a>(&'a self, key: &'a str) -> Result<Option<Unfinished<'a>>> {
        self.sweep()?;
        let folder = self.path.join(format!("{UNFINISHED}{key}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            made => made.with_context(|| folder.display().to_string())?,
        }
        let lock = File::open(&folder)?;
        // It is not ours where another process has just taken it for one that was left behind.
        let is_ours = lock.try_lock().is_ok()
            && folder
                .metadata()
                .is_ok_and(|now| lock.metadata().is_ok_and(|locked| locked.ino() == now.ino()));
        if !is_ours {
            return Ok(None);
        }
        DirBuilder::new().mode(0o700).create(folder.join(PLACE))?;
        Ok(Some(Unfinished { store: self, key, folder, _lock: lock }))
    }

    /// Removes the template `key`, unless a machine is being made of it.
    pub fn remove(&self, key: &str) -> bool {
        let folder = self.path.join(key);
        let state = File::open(folder.join(STATE)).ok();
        if state.as_ref().is_some_and(|state| state.try_lock().is_err()) {
            return false;
        }
        // Nobody finds half of it.
        let left = self.path.join(format!("{UNFINISHED}{key}.{}", std::process::id()));
        let removed = fs::rename(&folder, &left).and_then(|()| fs::remove_dir_all(&left));
        removed.inspect_err(|error| log::debug!("template {key}: {error}")).is_ok()
    }

    /// All templates, the most recently used first.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for key in self.names()?.into_iter().filter(|name| is_key(name)) {
            let folder = self.path.join(&key);
            // Another process may have removed it meanwhile.
            let Ok(used) = folder.metadata().and_then(|status| status.modified()) else { continue };
            let files = fs::read_dir(&folder).into_iter().flatten().flatten();
            let size = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
            let kernel = read_seal(&folder).ok().and_then(|seal| seal.kernel);
            entries.push(Entry { key, size, used, kernel });
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// Removes all templates, but those that are being made.
    pub fn clear(&self) -> Result<()> {
        self.sweep()?;
        for entry in self.entries()? {
            let mut tries = PATIENCE.as_millis() / STEP.as_millis();
            while !self.remove(&entry.key) {
                tries -= 1;
                ensure!(tries > 0, "template {}: it is in use, try again", entry.key);
                sleep(STEP);
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    /// Removes what processes have left behind that were killed.
    fn sweep(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            let folder = self.path.join(name);
            if let Ok(lock) = File::open(&folder)
                && lock.try_lock().is_ok()
                && let Err(error) = fs::remove_dir_all(&folder)
            {
                log::debug!("template {name}: {error}");
            }
        }
        Ok(())
    }

    /// Removes the least recently used templates above the limits; the last used one stays.
    fn shrink(&self) -> Result<()> {
        let mut bytes = 0;
        for (index, entry) in self.entries()?.iter().enumerate() {
            bytes += entry.size;
            if index > 0 && (index >= self.most || bytes > self.most_bytes) {
                self.remove(&entry.key);
            }
        }
        Ok(())
    }
}

impl Unfinished<'_> {
    /// Where the socket of its machine is to be.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(PLACE).join("api")
    }

    /// Where the snapshot is to be.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join(SNAPSHOT)
    }

    /// Seals the snapshot, which was made of `machine`, and gives it its place.
    pub fn keep(self, machine: &MachineConfig) -> Result<()> {
        let made = self.snapshot();
        let mut seal = Seal { kernel: machine.kernel.clone(), files: Vec::new() };
        seal.kernel = seal.kernel.map(std::path::absolute).transpose()?;
        for entry in fs::read_dir(&made)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            seal.files.push((name, FileLook::of(&entry.path())?));
        }
        fs::write(made.join(SEAL), serde_json::to_vec(&seal)?).context(SEAL)?;
        fs::rename(&made, self.store.path.join(self.key)).context("cannot keep it")?;
        self.store.shrink()
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            log::debug!("{}: {error}", self.folder.display());
        }
    }
}

fn read_seal(folder: &Path) -> Result<Seal> {
    let mut text = Vec::new();
    let file = File::open(folder.join(SEAL)).context(SEAL)?;
    file.take(MOST_OF_SEAL).read_to_end(&mut text)?;
    serde_json::from_slice(&text).context("it is damaged: seal")
}

fn is_key(name: &str) -> bool {
    name.len() == LEN && name.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

#[cfg(test)]
mod tests;

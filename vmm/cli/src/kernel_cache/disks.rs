//! The cache of disks that are made of images, in `$XDG_CACHE_HOME/tinyvmm/disks`: an entry is the disk itself, and is named
//! by what the image's layers are.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Result;

use super::{Cache, Unfinished, base, folder};

/// The folder, and most bytes of all disks in it.
const DISKS: &str = "disks";
const MAX_BYTES: u64 = 16 << 30;

impl Cache {
    /// Opens the disks of this user, and makes their folder if there is none.
    pub fn open_disks() -> Result<Self> {
        Self::open_in(&base()?, DISKS, MAX_BYTES)
    }

    /// Opens the disks of this user, if there are some.
    pub fn open_disks_if_there() -> Result<Option<Self>> {
        folder(DISKS)?.try_exists()?.then(Self::open_disks).transpose()
    }

    /// The path of the disk of this name, if there is one that `is_whole`.
    pub fn find_disk(&self, key: &str, is_whole: impl Fn(&File) -> bool) -> Option<PathBuf> {
        let file = self.open_file(key).ok().filter(is_whole)?;
        super::note_use(&file);
        Some(self.path.join(key))
    }

    /// Gives a disk that is written the hash of its contents as its name; returns that.
    pub fn insert_by_contents(&self, unfinished: Unfinished) -> Result<String> {
        let key = super::notes::hash(unfinished.file())?.to_hex().to_string();
        self.insert_disk(unfinished, &key)?;
        Ok(key)
    }

    /// Gives a disk that is written its name; removes others if there is no room.
    pub fn insert_disk(&self, unfinished: Unfinished, key: &str) -> Result<()> {
        unfinished.file().sync_data()?;
        unfinished.finish(key)?;
        // The machine opens the new one by its path.
        self.shrink(1)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn the_disk_that_was_not_used_for_longest_goes_and_never_the_new_one() {
        let folder = TempDir::new().unwrap();
        let cache = Cache::open_in(folder.as_path(), DISKS, 10 << 10).unwrap();
        let key = |number: u8| format!("{number:064x}");
        let insert = |number: u8, len: usize| {
            let unfinished = cache.begin().unwrap();
            unfinished.file().write_all_at(&vec![1; len], 0).unwrap();
            cache.insert_disk(unfinished, &key(number)).unwrap();
        };
        let find = |number| cache.find_disk(&key(number), |_| true);
        (1..=2).for_each(|number| insert(number, 4096));
        assert!(find(1).unwrap().ends_with(format!("tinyvmm/disks/{}", key(1))));
        assert_eq!(cache.find_disk(&key(1), |_| false), None);
        insert(3, 4096);
        assert_eq!([1, 2, 3].map(|number| find(number).is_some()), [true, false, true]);
        // One that has no room alone is there for its machine.
        insert(4, 1 << 20);
        assert_eq!([1, 3, 4].map(|number| find(number).is_some()), [false, false, true]);
    }
}

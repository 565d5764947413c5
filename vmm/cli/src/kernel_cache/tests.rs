//! The cache keeps what was booted, whoever else writes to its folder.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::notes::{FILE, PATH, note_name};
use super::*;

/// Puts an ELF with one segment of `len` bytes into the cache.
fn insert(cache: &Cache, number: u8, len: u64) {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let fields: [(usize, u64); 20] = [
        (2, 2),
        (2, 62),
        (4, 1),
        (8, 1 << 20),
        (8, 64),
        (8, 0),
        (4, 0),
        (2, 64),
        (2, 56),
        (2, 1),
        (2, 0),
        (2, 0),
        (2, 0), // Elf64_Ehdr; and Elf64_Phdr:
        (4, 1),
        (4, 7),
        (8, 120),
        (8, 1 << 20),
        (8, 1 << 20),
        (8, len),
        (8, len),
    ];
    for (size, value) in fields {
        elf.extend(&value.to_le_bytes()[..size]);
    }
    elf.resize(120 + len as usize, 7);
    let unfinished = cache.begin().unwrap();
    unfinished.file().write_all(&elf).unwrap();
    let image = Image::plain(unfinished.file().try_clone().unwrap(), elf.len() as u64);
    cache.insert(unfinished, &key(number), &image).unwrap();
}

fn with_cache(test: impl FnOnce(Cache, PathBuf)) {
    let name: [u8; 8] = random::bytes().unwrap();
    let base = env::temp_dir().join(format!("tinyvmm-{:x}", u64::from_le_bytes(name)));
    std::fs::create_dir(&base).unwrap();
    test(Cache::open_in(&base, KERNELS, MAX_BYTES).unwrap(), base.join("tinyvmm/kernels"));
    std::fs::remove_dir_all(base).unwrap();
}

fn key(number: u8) -> String {
    format!("{number:064x}")
}

#[test]
fn the_entry_that_was_not_used_for_longest_goes() {
    with_cache(|cache, _| {
        let cache = Cache { max_bytes: 3 << 20, ..cache };
        let pause = || sleep(Duration::from_millis(20));
        for number in [1, 2, 3] {
            insert(&cache, number, 900 << 10);
            pause();
        }
        assert!(cache.find(&key(1)).is_some());
        pause();
        insert(&cache, 4, 900 << 10);
        let left: Vec<_> = cache.entries().unwrap().into_iter().map(|entry| entry.key).collect();
        assert_eq!(left, [key(4), key(1), key(3)]);
        // An entry that is larger than the limit is removed as well.
        insert(&cache, 5, 4 << 20);
        assert!(cache.entries().unwrap().is_empty());
    });
}

#[test]
fn what_is_left_unfinished_goes_when_it_is_old_and_other_files_stay() {
    with_cache(|cache, dir| {
        let old = SystemTime::now() - PATIENCE * 7;
        for (name, time) in [("new-1", old), ("new-2", SystemTime::now()), ("mine", old)] {
            File::create(dir.join(name)).unwrap().set_modified(time).unwrap();
        }
        insert(&cache, 1, 10);
        assert!(!dir.join("new-1").exists() && dir.join("new-2").exists());
        cache.clear().unwrap();
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().collect();
        assert!(left.len() == 1 && left[0].file_name() == "mine", "{left:?}");
    });
}

#[test]
fn an_entry_has_the_path_that_was_last_booted_as_long_as_it_is_there() {
    with_cache(|cache, dir| {
        let cache = Cache { max_bytes: 3 << 20, ..cache };
        insert(&cache, 1, 900 << 10);
        let noted = |cache: &Cache| cache.entries().unwrap().remove(0).path;
        assert_eq!(noted(&cache), None);
        let bytes = OsString::from_vec(b"/caf\xe9\n".to_vec());
        for path in ["/etc/passwd".into(), "/boot/vmlinuz".into(), "/boot/vmlinuz".into(), bytes] {
            cache.note_path(&key(1), Path::new(&path));
            assert_eq!(noted(&cache), Some(path.into()));
        }
        // A path that is too long for a link leaves the last one.
        cache.note_path(&key(1), Path::new(&format!("/{}", "x/".repeat(4096))));
        assert_eq!(noted(&cache), Some(OsString::from_vec(b"/caf\xe9\n".to_vec()).into()));
        // A folder in a link's place is neither read nor replaced.
        std::fs::remove_file(dir.join(format!("{PATH}{}", key(1)))).unwrap();
        std::fs::create_dir(dir.join(format!("{PATH}{}", key(1)))).unwrap();
        cache.note_path(&key(1), Path::new("/boot"));
        assert_eq!(noted(&cache), None);
        std::fs::remove_dir(dir.join(format!("{PATH}{}", key(1)))).unwrap();
        cache.note_path(&key(1), Path::new("/boot"));
        // The note is removed with its entry.
        insert(&cache, 2, 4 << 20);
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn a_note_is_believed_only_of_the_same_file() {
    with_cache(|cache, dir| {
        let path = dir.join("bzImage");
        std::fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let one = cache.key(&file).unwrap();
        // The file has just changed, so no note is written.
        assert!(cache.files(|name| name.starts_with(FILE)).unwrap().is_empty());
        std::fs::write(dir.join(note_name(&file).unwrap()), key(9)).unwrap();
        assert_eq!(cache.key(&file).unwrap(), key(9));
        std::fs::write(dir.join(note_name(&file).unwrap()), "../../etc/passwd").unwrap();
        assert_eq!(cache.key(&file).unwrap(), one);
        std::fs::write(&path, "two").unwrap();
        assert_ne!(cache.key(&file).unwrap(), one);
    });
}

use vmm_sys_util::tempdir::TempDir;

use super::*;

const MACHINE: fn() -> MachineConfig = MachineConfig::default;

fn key(number: usize) -> String {
    format!("{number:032x}")
}

/// A template of this many bytes, used after all others.
fn keep(store: &Store, number: usize, bytes: usize) {
    let key = key(number);
    let new = store.begin(&key).unwrap().unwrap();
    let made = new.snapshot();
    fs::create_dir(&made).unwrap();
    fs::write(made.join(STATE), vec![1; bytes]).unwrap();
    new.keep(&MACHINE()).unwrap();
    // Times of files are as coarse as the kernel's tick.
    sleep(Duration::from_millis(20));
}

fn numbers(store: &Store) -> Vec<usize> {
    let entries = store.entries().unwrap();
    entries.iter().map(|entry| usize::from_str_radix(&entry.key, 16).unwrap()).collect()
}

fn store(most: usize, most_bytes: u64) -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store { path: folder.as_path().to_owned(), most, most_bytes };
    (folder, store)
}

#[test]
fn the_least_recently_used_ones_go_but_none_in_use_and_not_the_last() {
    let (_folder, store) = store(3, u64::MAX);
    (0..3).for_each(|number| keep(&store, number, 1));
    assert!(store.find(&key(0)).unwrap().is_some());
    sleep(Duration::from_millis(20));
    keep(&store, 3, 1);
    assert_eq!(numbers(&store), [3, 0, 2]);
    let (_, lock) = store.find(&key(2)).unwrap().unwrap();
    sleep(Duration::from_millis(20));
    (4..7).for_each(|number| keep(&store, number, 1));
    assert_eq!(numbers(&store), [6, 5, 4, 2]);
    drop(lock);
    keep(&store, 7, 1);
    assert_eq!(numbers(&store), [7, 6, 5]);

    let (_folder, store) = self::store(9, 300 << 10);
    for (number, left) in [&[0][..], &[1, 0], &[2, 1]].into_iter().enumerate() {
        keep(&store, number, 100 << 10);
        assert_eq!(numbers(&store), left);
    }
    keep(&store, 3, 900 << 10);
    assert_eq!(numbers(&store), [3]);
}

#[test]
fn what_is_changed_is_damaged_and_what_is_left_behind_goes() {
    let (_folder, store) = store(9, u64::MAX);
    keep(&store, 0, 100);
    assert!(store.find(&key(0)).is_ok_and(|found| found.is_some()));
    fs::write(store.path.join(key(0)).join(STATE), [1; 100]).unwrap();
    let damaged = store.find(&key(0)).unwrap_err();
    assert!(damaged.to_string().contains("state was changed"), "{damaged}");
    let key = key(1);
    let new = store.begin(&key).unwrap().unwrap();
    assert!(store.begin(&key).unwrap().is_none());
    // As a process that is killed leaves it.
    let folder = new.folder.clone();
    std::mem::forget(new);
    assert!(store.begin(&key).unwrap().is_none());
    assert!(folder.exists());
    fs::rename(&folder, store.path.join("new-left")).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(STATE), "half").unwrap();
    let new = store.begin(&key).unwrap().unwrap();
    assert_eq!(fs::read_dir(&new.folder).unwrap().count(), 1);
    drop(new);
    assert!(!folder.exists());
    store.clear().unwrap();
    assert_eq!(store.names().unwrap(), ["new-left"]);
}

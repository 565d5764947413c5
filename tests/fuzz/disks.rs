//! Images of whole disks, where a kernel is looked for: one that is right, with changes.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use image::Bootable;

use crate::files::MemoryFile;
use crate::input::Input;

/// A partition with ext4 (1 KiB blocks, a journal, a folder with an index): two kernels' files, a root, links.
static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut disk = Vec::new();
    GzDecoder::new(&include_bytes!("disk.gz")[..]).read_to_end(&mut disk).unwrap();
    disk
});

/// Each change is a place and a byte.
pub fn kernel(data: &[u8]) {
    let disk = MemoryFile::new(&DISK);
    let mut changes = Input(data);
    while let (Some(at), Some(byte)) = (changes.u32(), changes.u8()) {
        disk.file().write_all_at(&[byte], u64::from(at) % DISK.len() as u64).unwrap();
    }
    let Ok(found) = Bootable::find(disk.file()) else { return };
    let out = MemoryFile::new(&[]);
    let _ = found.write_kernel(out.file());
    let _ = found.write_initrd(out.file());
}

/// No change, and some to the tables of partitions, of the file system, of its groups and of its inodes.
pub fn changes() -> Vec<Vec<u8>> {
    let at = |place: u32| [&place.to_le_bytes()[..], &[1]].concat();
    let system = 64 * 512;
    let places = [
        512 + 72,
        1024 + 32,
        system + 1024 + 24,
        system + 2048,
        system + 3072,
        system + 300 * 1024,
    ];
    std::iter::once(Vec::new()).chain(places.map(at)).collect()
}

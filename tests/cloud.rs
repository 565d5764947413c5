//! Images of whole systems: the kernel that one has itself, and what its cloud-init is told. `linux::image` boots one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Crc;

use crate::dir::Dir;
use crate::fixture::Vmm;
use crate::guests;

const SECTOR: usize = 512;
/// Where the partition of a partitioned disk begins.
const START: usize = 1 << 20;

/// Writes an ext4 file system with `files` to `disk`.
pub fn ext4(disk: &Path, mib: u64, files: &[(&str, &[u8])]) {
    let root = Dir::new();
    for (name, contents) in files {
        let path = root.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(root.path(".")).arg(disk);
    let made = mke2fs.arg(format!("{mib}M")).output().expect("mke2fs is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A disk with the file system `part` as its partition `number`, in a table as UEFI has it.
pub fn partitioned(part: &[u8], number: usize) -> Vec<u8> {
    let sum = |bytes: &[u8]| {
        let mut crc = Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let mut disk = [&vec![0; START], part, &[0; 64 * SECTOR]].concat();
    let (first, last) = ((START / SECTOR) as u64, ((START + part.len()) / SECTOR - 1) as u64);
    let mut entries = vec![0; 128 * 128];
    let entry = &mut entries[(number - 1) * 128..];
    // Linux's data, and a number of its own.
    entry[..16].copy_from_slice(&0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4u128.to_le_bytes());
    entry[16..32].fill(number as u8);
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&last.to_le_bytes());
    let end = (disk.len() / SECTOR - 1) as u64;
    let mut header = [&b"EFI PART"[..], &[0, 0, 1, 0, 92, 0, 0, 0], &[0; 8]].concat();
    for number in [1, end, 34, end - 33] {
        header.extend(u64::to_le_bytes(number));
    }
    header.extend([7; 16]);
    header.extend(2u64.to_le_bytes());
    header.extend([128u32, 128].map(u32::to_le_bytes).concat());
    header.extend(sum(&entries));
    let own = sum(&header);
    header[16..20].copy_from_slice(&own);
    disk[SECTOR..SECTOR + header.len()].copy_from_slice(&header);
    disk[2 * SECTOR..2 * SECTOR + entries.len()].copy_from_slice(&entries);
    // So that other systems leave the disk alone.
    disk[446..462]
        .copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// A machine that is told to find its kernel itself, with a disk of these bytes.
fn vmm(place: &Dir, disk: &[u8]) -> Vmm {
    let vmm = Vmm::new().file("disk", disk).env("XDG_CACHE_HOME", place.path("cache"));
    vmm.args(["--mem", "32M", "--kernel", "auto", "--disk", "disk,readonly"])
}

/// The bytes of an ext4 file system with `files`.
fn system(place: &Dir, files: &[(&str, &[u8])]) -> Vec<u8> {
    ext4(&place.path("part"), 8, files);
    fs::read(place.path("part")).unwrap()
}

#[test]
fn the_newest_kernel_of_a_disk_boots_with_the_root_that_it_is_on() {
    let place = Dir::new();
    let (hello, line) = (guests::elf(&guests::hello()), guests::elf(&guests::zero_page()));
    let files: [(&str, &[u8]); 5] = [
        ("boot/vmlinuz-6.1.0-9", &hello),
        ("boot/vmlinuz-6.1.0-10", &line),
        ("boot/vmlinuz-0-rescue-9", &hello),
        ("boot/initrd.img-6.1.0-10", b"an initrd"),
        ("etc/os-release", b"ID=test"),
    ];
    let system = system(&place, &files);
    let whole = vmm(&place, &system).args(["--cmdline", "more"]).run().exits(0);
    whole.prints("root=/dev/vda more").prints("an initrd");
    let disk = partitioned(&system, 15);
    vmm(&place, &disk).run().exits(0).prints("root=/dev/vda15");
    let given = vmm(&place, &disk).args(["--cmdline", "root=/dev/vdb"]).run().exits(0);
    assert!(!given.prints("root=/dev/vdb").stdout.windows(8).any(|bytes| bytes == b"/dev/vda"));
}

#[test]
fn a_disk_without_a_kernel_is_told_with_what_to_do() {
    let place = Dir::new();
    let kernel = guests::elf(&guests::hello());
    let no_kernel = system(&place, &[("etc/os-release", b"x")]);
    let no_root = system(&place, &[("vmlinuz-1", &kernel)]);
    let mut damaged = no_root.clone();
    // s_blocks_per_group: as many groups as blocks, which would take memory for each.
    damaged[1024 + 4..][..4].fill(0xff);
    damaged[1024 + 32..][..4].copy_from_slice(&1u32.to_le_bytes());
    let mut table = partitioned(&no_root, 1);
    table[SECTOR + 72..SECTOR + 80].fill(0xff);
    let cases = [
        (&no_kernel, "no kernel named vmlinuz-VERSION"),
        (&no_root, "say --cmdline root="),
        (&damaged, "no ext4 file system"),
        (&table, "no partitions that can be read"),
        (&vec![0; 4096], "no ext4 file system"),
        (&vec![0; 100], "no partitions that can be read"),
    ];
    for (disk, why) in cases {
        vmm(&place, disk).run().exits(3).says(&["--kernel auto: disk: it has no", why]);
    }
    Vmm::new().args(["--kernel", "auto"]).run().exits(3).says(&["first --disk: name one"]);
}

/// The disk that a machine with these flags gets for cloud-init, and its files by their places in the folder.
fn told(place: &Dir, flags: &[&str]) -> (PathBuf, Vec<u8>) {
    let cache = place.path("cache");
    let _ = fs::remove_dir_all(&cache);
    let vmm = Vmm::new().guest(guests::hello).file("key.pub", "ssh-ed25519 AAAA me\n");
    let vmm = vmm.file("user", "#cloud-config\nhostname: x\n").file("net", "version: 2\n");
    vmm.env("XDG_CACHE_HOME", &cache).args(flags).run().exits(0).silently().prints("hello");
    let files = fs::read_dir(cache.join("tinyvmm/disks")).unwrap().map(|file| file.unwrap().path());
    let disks: Vec<_> = files.filter(|path| !path.is_symlink()).collect();
    let [disk] = &disks[..] else { panic!("{disks:?}") };
    (disk.clone(), fs::read(disk).unwrap())
}

#[test]
fn cloud_init_is_told_on_a_disk_with_its_label() {
    let place = Dir::new();
    let (disk, bytes) = told(
        &place,
        &["--ssh-key", "key.pub", "--cloud-init", "user-data=user,network-config=net"],
    );
    let found = Command::new("blkid").args(["-p", "-o", "export"]).arg(&disk).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    for line in ["LABEL=cidata", "TYPE=iso9660", "BLOCK_SIZE=2048"] {
        assert!(found.lines().any(|other| other == line), "{found}");
    }
    let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for text in
        ["USER-DATA.;1", "META-DATA.;1", "NETWORK-CONFIG.;1", "hostname: x\n", "version: 2\n"]
    {
        assert!(has(text), "{text}");
    }
    assert!(
        has(r#""public-keys":["ssh-ed25519 AAAA me"]"#) && has(r#""local-hostname":"tinyvmm""#)
    );
    // The same words make the same disk, other ones another.
    let again = told(
        &place,
        &["--ssh-key", "key.pub", "--cloud-init", "user-data=user,network-config=net"],
    );
    let other = told(&place, &["--ssh-key", "key.pub"]);
    assert_eq!((&disk, &bytes), (&again.0, &again.1));
    assert!(disk != other.0);
}

#[test]
fn what_cloud_init_cannot_be_told_is_refused() {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--cloud-init", "meta-data=m"], 2, "say user-data=FILE"),
        (&["--cloud-init", "user-data=none"], 3, "none: No such file"),
        (&["--cloud-init", "user-data=/dev/zero"], 3, "say a file of 16 MiB at most"),
        (&["--ssh-key", "key"], 3, "name the .pub file beside it"),
        (
            &["--ssh-key", "pub", "--cloud-init", "user-data=pub,meta-data=pub"],
            3,
            "under public-keys",
        ),
        (&["--ssh-key", "pub", "--disk", "kernel,readonly,id=cidata"], 3, "has the id cidata, too"),
    ];
    for (flags, code, why) in cases {
        let vmm =
            Vmm::new().guest(guests::hello).file("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
        let vmm = vmm.file("pub", "ssh-rsa A\n").env("XDG_CACHE_HOME", "cache");
        vmm.args(flags).run().exits(code).says(&[why]);
    }
}

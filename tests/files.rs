//! Files that are unfit for their flag: one line names the file and the remedy.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tinyvmm::layout::{GIB, MIB};

use crate::fixture::{Running, Vmm};
use crate::{bzimage as image, guests};

/// A machine that would write a file if it started: a refusal must leave no trace.
fn vmm() -> Vmm {
    Vmm::new().args(["--mem", "64M", "--console", "console.txt"])
}

/// A whole kernel with `bytes` at `offset`.
fn elf_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = guests::elf(&guests::hello());
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

/// A bzImage whose kernel is 512 bytes.
fn bzimage() -> Vec<u8> {
    let mut file = image::setup();
    image::put(&mut file, 0x1f4, &32u32.to_le_bytes()); // syssize
    image::put(&mut file, 0x260, &0x1000u32.to_le_bytes()); // init_size
    file.resize(image::SETUP + 512, 0);
    file
}

fn bzimage_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

#[track_caller]
fn refused(kernel: &[u8], words: &[&str]) {
    vmm().kernel(kernel).run().refuses(3, &[&["kernel kernel: "], words].concat());
}

/// A pipe without a writer: to open it for reading, or to read it, would block for ever.
fn with_fifo(vmm: Vmm) -> Vmm {
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, vmm.dir().path("fifo"), FileType::Fifo, mode, 0).unwrap();
    vmm
}

#[test]
fn what_was_open_before_can_be_named() {
    let script = r#"exec 3<kernel 5<disk 6>log && exec "$@" --config-file <(cat vm.json)"#;
    let drive =
        r#"{"drive_id":"d","path_on_host":"/dev/fd/5","is_root_device":true,"is_read_only":true}"#;
    let source = r#"{"kernel_image_path":"/dev/fd/3"}"#;
    let json = format!("\u{feff}{{\"boot-source\":{source},\r\n\"drives\":[{drive}]}}\r\n");
    for flags in [&["--console", "/dev/fd/6"][..], &["--console", "/dev/fd/6", "--api-sock", "s"]] {
        let vmm = Vmm::started_by(&["bash", "-c", script, "bash"]).sparse_file("disk", 1 << 20);
        let vmm = vmm.file("kernel", guests::elf(&guests::hello())).file("vm.json", &json);
        let outcome = vmm.args(flags).run().exits(0).silently();
        assert!(outcome.file("log").starts_with("hello byte by byte\n"), "{}", outcome.file("log"));
    }
}

#[test]
fn a_whole_bzimage_is_entered_512_bytes_after_its_start() {
    let mut file = bzimage();
    file.resize(2 * 512, 0);
    file.resize(2 * 512 + 0x200, 0x90);
    file.extend(guests::hello());
    let size = u32::try_from(file.len() - 2 * 512).unwrap().div_ceil(16);
    file.resize(2 * 512 + size as usize * 16, 0);
    file[0x1f4..0x1f8].copy_from_slice(&size.to_le_bytes());
    Vmm::new().kernel(&file).run().exits(0).prints("hello").silently();
}

#[test]
fn a_kernel_that_is_no_kernel() {
    let vmm = |path| vmm().args(["--kernel", path]);
    vmm("missing").run().refuses(3, &["kernel missing", "No such file"]);
    vmm(".").run().refuses(3, &["kernel .", "not a regular file"]);
    vmm("/dev/zero").run().refuses(3, &["kernel /dev/zero", "not a regular file"]);
    refused(b"", &["bzImage", "ELF"]);
    refused(b"#!/bin/sh\necho I am text\n", &["neither a bzImage", "nor an ELF"]);
    refused(&vec![0; 100_000], &["neither a bzImage", "nor an ELF"]);
    refused(b"\x1f\x8b\x08\0 and so on", &["gzip", "unpack it"]);
    refused(b"\xfd7zXZ\0 and so on", &["xz", "unpack it"]);
    refused(b"\x28\xb5\x2f\xfd and so on", &["zstd", "unpack it"]);
}

#[test]
fn a_bzimage_that_is_damaged_or_not_for_64_bits() {
    refused(&bzimage()[..3 * 512 - 1], &["truncated"]);
    refused(&bzimage()[..2 * 512], &["truncated"]);
    refused(&bzimage()[..0x210], &["truncated"]);
    refused(&bzimage_with(0x236, &[0, 0]), &["without a 64-bit entry", "use an x86-64 kernel"]);
    refused(&bzimage_with(0x206, &[0x0b, 2]), &["without a 64-bit entry"]);
    refused(&bzimage_with(0x1f4, &[0xff; 4]), &["truncated"]);
    refused(&bzimage_with(0x260, &(64u32 << 20).to_le_bytes()), &["--mem 65M"]);
    refused(&bzimage_with(0x260, &[0xff; 4]), &["--mem"]);
    refused(&bzimage_with(0x258, &0x1000u64.to_le_bytes()), &["below 1 MiB"]);
    refused(&bzimage_with(0x258, &[0xff; 8]), &["--mem"]);
}

#[test]
fn an_elf_that_is_damaged_or_for_another_machine() {
    const PHDR: usize = 64;
    let whole = guests::elf(&guests::hello());
    refused(&elf_with(18, &[183, 0]), &["another machine", "x86-64"]);
    refused(&elf_with(4, &[1]), &["32-bit", "x86-64"]);
    refused(&elf_with(5, &[2]), &["ELF"]); // big endian
    refused(&whole[..5], &["truncated"]);
    refused(&whole[..40], &["truncated"]);
    refused(&whole[..PHDR + 20], &["truncated"]);
    refused(&whole[..whole.len() - 1], &["truncated"]);
    refused(&elf_with(54, &[55]), &["program headers of 55 bytes"]);
    refused(&elf_with(56, &[0, 0]), &["nothing to load"]);
    refused(&elf_with(56, &[0xff; 2]), &["65535 program headers"]);
    refused(&elf_with(32, &[0xff; 8]), &["truncated"]);
    refused(&elf_with(PHDR + 8, &[0xff; 8]), &["truncated"]);
    refused(&elf_with(PHDR + 32, &[0xff; 8]), &["truncated"]);
    refused(&elf_with(24, &[0; 8]), &["entry"]);
}

#[test]
fn an_elf_that_asks_for_memory_that_is_not_there() {
    const ADDRESS: usize = 64 + 24;
    const MEMORY_LEN: usize = 64 + 40;
    refused(&elf_with(ADDRESS, &(100 * MIB).to_le_bytes()), &["--mem 101M"]);
    refused(&elf_with(ADDRESS, &0x1000u64.to_le_bytes()), &["below 1 MiB"]);
    refused(&elf_with(ADDRESS, &(3 * GIB).to_le_bytes()), &["where no --mem has RAM"]);
    refused(&elf_with(ADDRESS, &[0xff; 8]), &["where no --mem has RAM"]);
    refused(&elf_with(MEMORY_LEN, &[0xff; 8]), &["where no --mem has RAM"]);
    refused(&elf_with(MEMORY_LEN, &(64 * MIB).to_le_bytes()), &["--mem 65M"]);
}

#[test]
fn an_initrd_that_is_missing_empty_or_too_large() {
    let vmm = || vmm().guest(guests::hello);
    let initrd = |vmm: Vmm, path| vmm.args(["--initrd", path]).run();
    initrd(vmm(), "missing").refuses(3, &["initrd missing", "No such file"]);
    initrd(vmm(), ".").refuses(3, &["initrd .", "not a regular file"]);
    initrd(vmm().file("empty", ""), "empty").refuses(3, &["initrd empty", "contents"]);
    let large = vmm().sparse_file("large", 100 * MIB);
    initrd(large, "large").refuses(3, &["initrd large", "--mem 102M"]);
}

#[test]
fn the_memory_that_is_asked_for_is_enough() {
    let vmm = Vmm::new().sparse_file("large", 100 * MIB).args(["--mem", "102M"]);
    vmm.guest(guests::hello).args(["--initrd", "large"]).run().exits(0);
    let kernel = elf_with(64 + 24, &(100 * MIB).to_le_bytes());
    // The entry is at an address where nothing is loaded.
    let vmm = Vmm::new().kernel(&kernel).args(["--mem", "101M"]);
    vmm.run().refuses(3, &["entry 0x100000"]);
}

#[test]
fn a_disk_that_is_missing_in_use_or_of_no_use() {
    let vmm = || vmm().guest(guests::hello);
    let disk = |vmm: Vmm, disk, words: &[&str]| {
        vmm.args(["--disk", disk]).run().refuses(3, &[&["disk "], words].concat());
    };
    disk(vmm(), "missing", &["missing", "No such file"]);
    disk(vmm(), ".,readonly", &["disk .:", "neither a file nor a block device"]);
    disk(vmm(), ".", &["disk .:", "directory"]);
    disk(vmm(), "/dev/zero", &["/dev/zero", "neither a file nor a block device"]);
    disk(vmm().file("odd", [0; 1000]), "odd", &["odd", "1000 bytes", "truncate -s %512"]);
    disk(vmm().file("empty", ""), "empty", &["disk empty", "truncate"]);
}

#[test]
fn a_disk_is_for_one_writer_or_many_readers() {
    let vmm = || vmm().sparse_file("disk", MIB).guest(guests::hello);
    let (writer, reader) = (vmm(), vmm());
    let writes = File::open(writer.dir().path("disk")).unwrap();
    writes.try_lock().unwrap();
    writer.args(["--disk", "disk"]).run().refuses(3, &["disk disk", "in use", "stop that one"]);
    let reads = File::open(reader.dir().path("disk")).unwrap();
    reads.try_lock_shared().unwrap();
    reader.args(["--disk", "disk"]).run().refuses(3, &["disk disk", "in use"]);
    let reader = vmm();
    let reads = File::open(reader.dir().path("disk")).unwrap();
    reads.try_lock_shared().unwrap();
    reader.args(["--disk", "disk,readonly"]).run().exits(0);
    let sharer = vmm();
    let reads = File::open(sharer.dir().path("disk")).unwrap();
    reads.try_lock_shared().unwrap();
    let twice = ["--disk", "disk,overlay", "--disk", "disk,overlay"];
    sharer.args(twice).run().exits(0).silently();
    let sharer = vmm();
    let writes = File::open(sharer.dir().path("disk")).unwrap();
    writes.try_lock().unwrap();
    sharer.args(["--disk", "disk,overlay"]).run().refuses(3, &["disk disk", "in use"]);
    vmm().args(["--disk", "disk", "--disk", "disk"]).run().refuses(2, &["--disk disk", "twice"]);
}

#[test]
fn a_disk_that_is_there_twice_by_other_names_is_not_taken_for_another_machines() {
    let vmm = || {
        let vmm = vmm().sparse_file("disk", MIB).sparse_file("base", MIB).guest(guests::hello);
        std::os::unix::fs::symlink("disk", vmm.dir().path("link")).unwrap();
        fs::hard_link(vmm.dir().path("disk"), vmm.dir().path("hard")).unwrap();
        vmm
    };
    for other in ["./disk", "link", "hard", "link,readonly", "base,overlay=hard", "hard,lock=off"] {
        let name =
            other.split([',', '=']).find(|name| !["base", "overlay"].contains(name)).unwrap();
        let twice = vmm().args(["--disk", "disk", "--disk", other]);
        twice.run().refuses(3, &["another disk has this file, as disk", name, "leave one out"]);
    }
    vmm().args(["--disk", "disk,readonly", "--disk", "link,overlay"]).run().exits(0).silently();
}

#[test]
fn a_disk_whose_owner_wants_no_lock_is_used_whoever_has_it() {
    for (locked, disk) in [
        ("disk", "disk,lock=off"),
        ("disk", "disk,readonly,lock=off"),
        ("layer", "disk,overlay=layer,lock=off"),
    ] {
        let vmm = vmm().sparse_file("disk", MIB).file("layer", "").guest(guests::hello);
        let other = File::open(vmm.dir().path(locked)).unwrap();
        other.try_lock().unwrap();
        vmm.args(["--disk", disk]).run().exits(0).silently();
    }
}

/// As systemd-udevd locks a block device whenever it has changed.
#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    for (locked, disk) in
        [("disk", "disk"), ("disk", "disk,readonly"), ("layer", "disk,overlay=layer")]
    {
        let vmm = vmm().sparse_file("disk", MIB).file("layer", "").guest(guests::hello);
        let other = File::open(vmm.dir().path(locked)).unwrap();
        other.try_lock().unwrap();
        let running = vmm.args(["--disk", disk]).start();
        // Without the wait tinyvmm would have ended by now.
        let name = running.dir().path(locked);
        let running = running.until(|vmm| has_open(vmm, &name));
        std::thread::sleep(std::time::Duration::from_millis(100));
        other.unlock().unwrap();
        running.wait().exits(0).silently();
    }
}

/// Whether `vmm` has the file at `path` open, where that may be looked at.
fn has_open(vmm: &Running, path: &Path) -> bool {
    let Ok(files) = fs::read_dir(vmm.proc("fd")) else { return true };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|open| open == path))
}

#[test]
fn a_temporary_overlay_needs_somewhere_to_be() {
    let vmm = vmm().guest(guests::hello).sparse_file("disk", MIB);
    let vmm = vmm.args(["--disk", "disk,overlay"]).env("TMPDIR", "/nowhere");
    vmm.run().refuses(3, &["disk", "/nowhere", "set TMPDIR"]);
}

#[test]
fn an_overlay_that_is_not_one_or_in_use() {
    let vmm = || vmm().sparse_file("disk", MIB).guest(guests::hello);
    let refused = |vmm: Vmm, words: &[&str]| {
        let vmm = vmm.args(["--disk", "disk,overlay=layer"]);
        vmm.run().refuses(3, &[&["disk disk: overlay layer: "], words].concat());
    };
    refused(vmm().file("layer", "I am text"), &["no overlay", "not there yet"]);
    refused(vmm().sparse_file("layer", MIB), &["no overlay"]);
    let in_use = vmm().file("layer", "");
    let other = File::open(in_use.dir().path("layer")).unwrap();
    other.try_lock().unwrap();
    refused(in_use, &["in use", "another overlay"]);
    let own = vmm().args(["--disk", "disk,overlay=disk"]);
    own.run().refuses(3, &["overlay disk: it is the disk itself"]);
    let missing = vmm().args(["--disk", "disk,overlay=no/layer"]);
    missing.run().refuses(3, &["overlay no/layer", "No such file"]);
    with_fifo(vmm()).args(["--disk", "disk,overlay=fifo"]).run().refuses(3, &["overlay fifo"]);
    // A new layer exists afterwards, and is valid the next time.
    let first = vmm().args(["--disk", "disk,overlay=layer"]).run().exits(0).silently();
    let next = vmm().file("layer", fs::read(first.dir().path("layer")).unwrap());
    next.args(["--disk", "disk,overlay=layer"]).run().exits(0).silently();
}

#[test]
fn a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for() {
    let vmm = || with_fifo(vmm().file("good", guests::elf(&guests::hello())));
    vmm().args(["--kernel", "fifo"]).run().refuses(3, &["kernel fifo", "not a regular file"]);
    let vmm = || vmm().args(["--kernel", "good"]);
    vmm().args(["--initrd", "fifo"]).run().refuses(3, &["initrd fifo", "not a regular file"]);
    vmm().args(["--disk", "fifo"]).run().refuses(3, &["disk fifo", "neither a file"]);
    vmm().args(["--disk", "fifo,readonly"]).run().refuses(3, &["disk fifo", "neither a file"]);
}

#[test]
fn an_elf_with_more_than_any_kernel_has() {
    let good = guests::elf(&guests::hello());
    let with_headers = |count: u16| {
        let mut file = good.clone();
        let header = file[64..64 + 56].to_vec(); // the one that there is
        let at = file.len() as u64;
        file[32..40].copy_from_slice(&at.to_le_bytes()); // e_phoff
        file[56..58].copy_from_slice(&count.to_le_bytes()); // e_phnum
        file.extend(header.repeat(count.into()));
        file
    };
    Vmm::new().kernel(&with_headers(1)).run().exits(0).prints("hello");
    refused(&with_headers(2), &["segments that overlap", "damaged"]);
    refused(&with_headers(257), &["257 program headers", "damaged"]);
}

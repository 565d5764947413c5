//! Disks, as Linux uses them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{CLOUD_BZIMAGE, CLOUD_ELF, Console, SMALL_ELF, console_of, disk, image};
use crate::fixture::Dir;

const MIB: usize = 1 << 20;

/// Bytes of which no two sectors are alike.
fn pattern(len: usize) -> Vec<u8> {
    let words = 0..len as u64 / 8;
    words.flat_map(|word| (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// A file with that pattern.
pub(super) fn full(dir: &Dir, name: &str, len: usize) -> PathBuf {
    let path = dir.path(name);
    fs::write(&path, pattern(len)).unwrap();
    path
}

/// A file with nothing in it.
pub(super) fn empty(dir: &Dir, name: &str, len: usize) -> PathBuf {
    let path = dir.path(name);
    File::create(&path).unwrap().set_len(len as u64).unwrap();
    path
}

/// A file system that a guest may write to.
pub(super) fn ext4(dir: &Dir, name: &str) -> PathBuf {
    let path = dir.path(name);
    run(Command::new("cp").arg("--sparse=always").arg(image("disk")).arg(&path));
    path
}

/// The output of `command`.
#[track_caller]
pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn md5(path: &Path) -> String {
    run(Command::new("md5sum").arg(path)).split(' ').next().unwrap().into()
}

/// Bytes that the file occupies on the host.
fn used(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_is_copied_from_disk_to_disk_has_one_checksum_inside_and_outside() {
    let dir = Dir::new();
    let (from, to) = (full(&dir, "from", 256 * MIB), empty(&dir, "to", 256 * MIB));
    let script = "cd /sys/block; echo id=$(cat vda/serial) $(cat vdb/serial); \
        echo size=$(cat vda/size); echo ro=$(blockdev --getro /dev/vda); echo mq=$(ls vdb/mq); \
        dd if=/dev/zero of=/dev/vda count=1 || echo refused=1; \
        dd if=/dev/vda of=/dev/vdb bs=1M iflag=direct oflag=direct conv=fsync && echo copied=1; \
        echo sum=$(md5sum < /dev/vdb)";
    let vmm = CLOUD_ELF.runs(script).args(["--cpus", "2"]);
    let vmm =
        vmm.args(disk(&from, ",readonly,id=source")).args(disk(&to, ",id=20-bytes-of-an-id-20"));
    let console = console_of(vmm);
    console.has("id", "source 20-bytes-of-an-id-20").has("size", "524288").has("ro", "1");
    console.has("mq", "0 1").has("refused", "1").has("copied", "1");
    let sum = md5(&to);
    console.has("sum", &format!("{sum} -"));
    assert_eq!(sum, md5(&from), "the copy");
}

/// A disk that can be opened with O_DIRECT, which tmpfs does not have: a loop device if necessary.
struct Direct(PathBuf, bool);

impl Direct {
    fn new(file: &Path) -> Self {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file);
        if opened.is_ok() {
            return Self(file.into(), false);
        }
        run(Command::new("modprobe").arg("loop"));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(device.trim_end().into(), true)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if self.1 {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn four_cpus_that_use_disks_at_once_do_not_get_in_each_others_way() {
    let dir = Dir::new();
    let (from, to) = (full(&dir, "from", 64 * MIB), empty(&dir, "to", 64 * MIB));
    let direct_file = empty(&dir, "direct", 64 * MIB);
    let direct = Direct::new(&direct_file);
    // Each part by a process of its own, to both disks, in pieces of different sizes.
    let script = "for i in 0 1 2 3; do for d in b:64 c:1024; do k=${d#*:}; \
        dd if=/dev/vda of=/dev/vd${d%:*} bs=${k}k skip=$((i * 16384 / k)) seek=$((i * 16384 / k)) \
        count=$((16384 / k)) conv=fsync 2>/dev/null & done; done; wait; \
        echo 3 > /proc/sys/vm/drop_caches; echo mq=$(ls /sys/block/vdc/mq); \
        for d in a b c; do echo vd$d=$(md5sum < /dev/vd$d) & done; wait";
    let vmm = CLOUD_BZIMAGE.runs(script).args(["--cpus", "4"]).args(disk(&from, ",readonly"));
    let console = console_of(vmm.args(disk(&to, "")).args(disk(&direct.0, ",direct")));
    drop(direct);
    console.has("mq", "0 1 2 3");
    for (name, path) in [("vda", from), ("vdb", to), ("vdc", direct_file)] {
        let sum = md5(&path);
        console.has(name, &format!("{sum} -"));
        assert_eq!(console.value(name), console.value("vda"), "the copies are alike");
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn discarded_space_is_given_back_to_the_host() {
    let dir = Dir::new();
    let (raw, mounted) = (full(&dir, "raw", 64 * MIB), ext4(&dir, "mounted"));
    let script = "blkdiscard -o 16777216 -l 33554432 /dev/vda && echo discarded=1; \
        mount /dev/vdb /mnt; head -c 16777216 /dev/urandom > /mnt/big; sync; echo written=1; \
        read go; rm /mnt/big; sync; fstrim /mnt && echo trimmed=1; umount /mnt";
    let vmm = CLOUD_ELF.runs(script).args(disk(&raw, "")).args(disk(&mounted, ""));
    let before = used(&mounted);
    let running = vmm.stdin(Stdio::piped()).start().prints("written=1");
    let written = used(&mounted) - before;
    assert!(written >= 16 * MIB as u64, "only {written} bytes more on the host after a sync");
    let outcome = running.types("\n").wait().exits(0).silently();
    Console::of(&outcome).has("discarded", "1").has("trimmed", "1");
    let left = used(&mounted).saturating_sub(before);
    assert!(left < 4 * MIB as u64, "{left} bytes are still used");
    assert_eq!(used(&raw), 32 * MIB as u64, "half of the disk is used");
    let mut expected = pattern(64 * MIB);
    expected[16 * MIB..48 * MIB].fill(0);
    assert!(fs::read(&raw).unwrap() == expected, "just what was discarded is zero");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_was_flushed_survives_a_killed_tinyvmm() {
    let dir = Dir::new();
    let path = ext4(&dir, "mounted");
    let script = "mount /dev/vda /mnt; head -c 4000000 /dev/urandom > /mnt/kept; \
        echo sum=$(md5sum < /mnt/kept); sync; echo flushed=1; \
        while true; do dd if=/dev/zero of=/mnt/lost bs=1M count=8 2>/dev/null; done";
    let running = SMALL_ELF.runs(script).args(disk(&path, "")).start().prints("flushed=1");
    running.signal(libc::SIGKILL);
    let before = Console::of(&running.wait());
    // The lock ended with the process.
    let script = "mount /dev/vda /mnt; echo sum=$(md5sum < /mnt/kept)";
    let after = console_of(SMALL_ELF.runs(script).args(disk(&path, "")));
    after.has("sum", before.value("sum"));
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_disk_has_one_writer_or_many_readers() {
    let dir = Dir::new();
    let (own, shared) = (empty(&dir, "own.img", MIB), full(&dir, "shared.img", MIB));
    let vmm = CLOUD_ELF.runs("echo up=1; sleep 1000");
    let vmm = vmm.args(disk(&own, "")).args(disk(&shared, ",readonly"));
    let running = vmm.start().prints("up=1");
    let other = || CLOUD_ELF.runs("echo sum=$(md5sum < /dev/vda)");
    for (path, options, name) in
        [(&own, "", "own.img"), (&own, ",readonly", "own.img"), (&shared, "", "shared.img")]
    {
        let refused = other().args(disk(path, options)).run();
        refused.refuses(3, &[name, "in use by another machine"]);
    }
    let reader = console_of(other().args(disk(&shared, ",readonly")));
    reader.has("sum", &format!("{} -", md5(&shared)));
    drop(running);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_overlay_keeps_what_was_written_or_loses_it_and_spares_the_disk() {
    let dir = Dir::new();
    let (path, layer) = (ext4(&dir, "base.img"), dir.path("own.layer"));
    let before = md5(&path);
    // Boots twice: the first time it writes and resets.
    let script = "mount /dev/vda /mnt; echo found=$(cat /mnt/file); [ -e /mnt/file ] || \
        { head -c 3000000 /dev/urandom > /mnt/big; md5sum < /mnt/big > /mnt/file; sync; reboot -f; }; \
        echo big=$(md5sum < /mnt/big); umount /mnt";
    let run = |options: &str| console_of(CLOUD_ELF.runs(script).args(disk(&path, options)));
    let twice = |console: &Console| {
        let sums: Vec<_> = console.0.lines().filter_map(|l| l.strip_prefix("found=")).collect();
        assert_eq!(sums.len(), 2, "it was reset once:\n{}", console.0);
        assert_eq!(sums[0], "", "the disk is new");
        console.has("big", sums[1]);
        sums[1].to_owned()
    };
    let lost = [twice(&run(",overlay")), twice(&run(",overlay"))];
    assert_ne!(lost[0], lost[1], "each machine had its own");
    let keep = format!(",overlay={}", layer.display());
    let kept = twice(&run(&keep));
    assert_ne!(kept, lost[1]);
    run(&keep).has("found", &kept).has("big", &kept);
    assert_eq!(md5(&path), before, "the disk is as it was");
    assert!(used(&layer) < 16 * MIB as u64, "the layer takes {} bytes", used(&layer));
    // Killed right after a sync; then other machines open the same layer.
    let script = "mount /dev/vda /mnt; echo new > /mnt/other; sync; echo up=1; sleep 1000";
    let running = CLOUD_ELF.runs(script).args(disk(&path, &keep)).start().prints("up=1");
    let refused = CLOUD_ELF.runs("true").args(disk(&path, &keep)).run();
    refused.refuses(3, &["own.layer", "in use by another machine"]);
    CLOUD_ELF.runs("true").args(disk(&path, "")).run().refuses(3, &["base.img", "in use"]);
    running.signal(libc::SIGKILL);
    running.wait();
    let script = "mount /dev/vda /mnt; echo found=$(cat /mnt/file /mnt/other)";
    let after = console_of(CLOUD_ELF.runs(script).args(disk(&path, &keep)));
    after.has("found", &format!("{kept} new"));
    assert_eq!(md5(&path), before, "the disk is as it was");
    // The disk changes: the layer is invalid now.
    console_of(CLOUD_ELF.runs("mount /dev/vda /mnt; umount /mnt").args(disk(&path, "")));
    CLOUD_ELF
        .runs("true")
        .args(disk(&path, &keep))
        .run()
        .refuses(3, &["own.layer", "another disk"]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_error_of_the_host_is_one_of_the_guest_and_the_machine_goes_on() {
    let dir = Dir::new();
    let path = full(&dir, "shrinks.img", 32 * MIB);
    let script = "echo up=1; read go; for i in 1 2 3; do \
        dd if=/dev/vda of=/dev/null bs=4k skip=8000 count=1 iflag=direct || echo failed=$i; done; \
        echo sum=$(dd if=/dev/vda bs=1M count=1 | md5sum)";
    let vmm = CLOUD_ELF.runs(script).args(disk(&path, "")).stdin(Stdio::piped());
    let running = vmm.start().prints("up=1");
    File::options().write(true).open(&path).unwrap().set_len(MIB as u64).unwrap();
    let outcome = running.types("\n").wait().exits(0).says(&["shrinks.img"]);
    let console = Console::of(&outcome);
    assert_eq!(console.count("failed="), 3, "{}", console.0);
    console.has("sum", &format!("{} -", md5(&path)));
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_root_disk_boots_and_keeps_what_was_written() {
    let dir = Dir::new();
    let path = ext4(&dir, "root.img");
    let boot = |options: &str, cmdline: &str| {
        let vmm = CLOUD_BZIMAGE.with_cmdline(&format!("quiet root=/dev/vda {cmdline}"));
        let vmm = vmm.args(["--cpus", "4,sockets=1,cores=2,threads=2", "--mem", "512M"]);
        console_of(vmm.args(disk(&path, options)))
    };
    let script = "echo kept > /mnt/file; echo root=$(findmnt -no SOURCE,FSTYPE /); \
        echo cpus=$(lscpu | grep -E '^(Socket|Core|Thread)'); echo vm=$(lscpu | grep ^Hyper); \
        echo dmi=$(dmidecode -s system-manufacturer), $(dmidecode -t memory | grep -m1 Size)";
    let console = boot("", &format!("rw -- \"{script}\""));
    console.has("root", "/dev/vda ext4").has("vm", "Hypervisor vendor: KVM");
    console.has("cpus", "Thread(s) per core: 2 Core(s) per socket: 2 Socket(s): 1");
    console.has("dmi", "tinyvmm, Size: 512 MB");
    let script = "echo file=$(cat /mnt/file); echo no > /mnt/file || echo refused=1";
    let console = boot(",readonly", &format!("ro -- \"{script}\""));
    console.has("file", "kept").has("refused", "1");
}

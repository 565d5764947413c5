//! The kernel that guest-images makes for tinyvmm can do what stock kernels can.

use super::disk::ext4;
use super::ends::LISTENING;
use super::{Console, SMALL_BZIMAGE, SMALL_ELF, disk};
use crate::fixture::Dir;

/// Tests of a disk, and of what containers are made of. The brackets keep dmesg's copy of this from matching.
const TRIES: [&str; 11] = [
    "echo cpus=$(nproc)",
    "mount /dev/vda /mnt && echo kept > /mnt/file && umount /mnt && mount /dev/vda /mnt",
    "echo disk=$(cat /mnt/file) $(grep -c '/mnt ext4 rw' /proc/mounts)",
    "cd /mnt; mkdir low up work all; echo low > low/file",
    "mount -t overlay -o lowerdir=low,upperdir=up,workdir=work none all && echo new > all/file",
    "echo overlay=$(cat low/file up/file)",
    "mount -t cgroup2 none /sys/fs/cgroup",
    "echo cgroup=$(for c in cpu memory io pids; do grep -wo $c /sys/fs/cgroup/cgroup.controllers; done)",
    "unshare -m -u -i -n -p -U -r -f sh -c 'echo inside=$$ $(id -u) $(grep -c : /proc/net/dev)'",
    "ip link add type veth; ip link add br0 type bridge; echo net=$(ls /sys/class/net)",
    "echo wrong=$(dmesg | grep -E '[O]ops|[W]ARNING: CPU|[B]UG|[C]all Trace|[F]irmware [BW]')",
];

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn it_uses_disks_runs_containers_and_powers_off_at_the_button() {
    let dir = Dir::new();
    let path = ext4(&dir, "disk.img");
    let script = format!("{}; {LISTENING}; sleep 1000", TRIES.join("; "));
    let vmm = SMALL_ELF.runs(&script).args(disk(&path, "")).args(["--cpus", "2"]);
    let running = vmm.start().prints("ready=1");
    running.signal(libc::SIGTERM);
    let console = Console::of(&running.wait().exits(0).silently().leaves_nothing());
    console.has("cpus", "2").has("disk", "kept 1").has("overlay", "low new");
    console.has("cgroup", "cpu memory io pids").has("inside", "1 0 1");
    console.has("net", "br0 lo veth0 veth1").has("wrong", "");
    assert_eq!(console.count("tinyvmm-init: power button"), 1, "{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn its_bzimage_boots_at_a_random_address() {
    let script = "echo cpus=$(nproc); echo kernel=$(grep -m1 ' _text$' /proc/kallsyms); reboot -f";
    let vmm = SMALL_BZIMAGE.runs(script).args(["--cpus", "4", "--no-reboot"]);
    let console = Console::of(&vmm.run().exits(4).says(&["the guest rebooted"]));
    console.has("cpus", "4");
    let fixed = "ffffffff81000000 T _text"; // where it is built to run, without KASLR
    assert!(console.value("kernel") != fixed, "{}", console.0);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn what_init_and_a_command_report_by_ports_arrives() {
    let vmm = SMALL_BZIMAGE.with_cmdline("").args(["--boot-report=report.json"]);
    let outcome = vmm.args(["--", "sh", "-c", "exit 7"]).run().exits(7).silently();
    assert!(outcome.file("report.json").contains("init-mark"));
}

/// It finds devices by ACPI, and by the command line where that turns ACPI off: once in either case.
#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn it_finds_each_disk_once_with_and_without_acpi() {
    let script = "ls /sys/block; dd if=/dev/vda of=/dev/null bs=64K 2>/dev/null && echo read; \
                  dmesg | grep -E 'virtio-mmio.*(request|fail)|unknown parameter'";
    for added in ["quiet", "acpi=off"] {
        let vmm = SMALL_BZIMAGE.with_cmdline(added).sparse_file("disk", 16 << 20);
        let vmm = vmm.args(["--disk", "disk", "--", "sh", "-c", script]);
        let outcome = vmm.run().exits(1).silently(); // grep has found nothing
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "vda\nread\n", "{added}");
    }
}

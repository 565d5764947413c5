"""What is compared: every row, by topic, with its unit and its method."""

from dataclasses import dataclass
from typing import Tuple

WITHIN = "reported by the workload"


@dataclass(frozen=True)
class Row:
    """`better` is "less", "more" or "", if neither is better. With `clock` it depends on the host's speed."""

    id: str
    group: str
    title: str
    unit: str
    better: str
    clock: bool
    method: str


def _rows(group: str, *rows: Tuple[str, str, str, str, bool, str]) -> Tuple[Row, ...]:
    return tuple(Row(row[0], group, *row[1:]) for row in rows)


ROWS = (
    *_rows(
        "Host utilisation",
        ("memory_idle", "memory when idle", "MiB", "less", False,
         "memory.current of the instance's control group: processes, page cache, tmpfs and kernel memory that it was the first to touch. The tree and the image are in the page cache before, and nobody's."),
        ("memory_loaded", "memory under load", "MiB", "less", False,
         "The same while the workload has a file of LOAD MiB in a tmpfs."),
        ("memory_after", "memory after the load has gone", "MiB", "less", False,
         "The same SETTLE s after the file was deleted. The machine gives memory back by free page reporting."),
        ("memory_each", "memory of each of CROWD instances", "MiB", "less", False,
         "The mean of memory.current when CROWD instances are idle at the same time."),
        ("per_gib", "instances that fit into a GiB", "", "more", False,
         "1024 MiB by the mean of memory.current when CROWD instances are idle at the same time. The image in the page cache, which is there once for all, does not count."),
        ("crowd_cache", "page cache that CROWD instances add, together", "MiB", "less", False,
         "What Cached in the host's /proc/meminfo has grown by then, if it has. The tree and the image are in it before, once for all instances; what is added is what each has written."),
        ("cpu_idle", "processor time when idle", "ms a second", "less", True,
         "usage_usec in cpu.stat of the control group over IDLE s without a command, from CALM s after the start on."),
    ),
    *_rows(
        "Simplicity",
        ("image_size", "size of what is shipped", "MiB", "less", False,
         "The bytes of all files of the tree; for the machine the blocks that the image takes, it being sparse, and the kernel."),
        ("steps", "steps to a first web page", "", "less", False,
         "What a user types or writes until the web server of the row web speaks, as this script does it: each command and each file that has to be edited is a step. Tree, image and kernel are there."),
        ("web_host", "whether the host gets that page", "", "", False,
         "The host asks 127.0.0.1 for it, while the web server runs. No side has been given a network: the process has the host's, the container a loopback device of its own, as runc makes it, and tinyvmm has no network card."),
    ),
    *_rows(
        "Speed",
        ("start", "start to first output", "ms", "less", True,
         "From before the process, the container's overlay and runc, or tinyvmm is started, until the first line of the workload, a shell script, arrives here."),
        ("web", "start to a web server's first answer", "ms", "less", True,
         "The workload starts busybox httpd and asks it over loopback, every ms until it answers; the answer comes back on the console: a pipe, in the machine the serial port. Tinyvmm has no network, so all sides do the same."),
        ("stop", "stop", "ms", "less", True,
         "SIGTERM to the process; runc kill with TERM, runc delete and umount; SIGTERM to tinyvmm, which presses the power button. Until processes, control group and mounts are gone."),
        ("crowd_start", "CROWD instances, started one after another", "ms", "less", True,
         "From the start of the first one to the first output of the last one; the next is started when the one before has spoken."),
        ("cpu_one", "SHA-256, one process", "MiB/s", "more", True,
         "openssl speed -evp sha256, blocks of 16 KiB, SECONDS s."),
        ("cpu_all", "SHA-256, on all processors", "MiB/s", "more", True,
         "The same with -multi and as many processes as the host has processors; the machine has as many."),
        ("copy", "memory copied", "MiB/s", "more", True,
         "mbw: memcpy() of COPY MiB, the median of 5 times."),
        ("disk_random", "4 KiB random writes, each with fsync", "IOPS", "more", True,
         "fio, psync, --fsync=1, a file of SMALL MiB on the root file system: the folder's own, overlayfs over it, or ext4 on virtio-blk with an overlay file in the same folder."),
        ("disk_write", "1 MiB sequential writes, fsync at the end", "MiB/s", "more", True,
         "fio, psync, --end_fsync=1, a file of LARGE MiB at the same place."),
        ("disk_read", "1 MiB sequential reads", "MiB/s", "more", True,
         "fio, psync, a file of LARGE MiB; fio asks the kernel to drop its pages first (POSIX_FADV_DONTNEED), the workload's kernel: below a machine the host's page cache stays."),
    ),
    *_rows(
        "Security",
        ("kernel", "whose kernel answers", "", "", False,
         f"uname -r and /proc/sys/kernel/random/boot_id, {WITHIN}, against the host's."),
        ("processes", "processes that can be seen", "", "", False,
         f"Entries of /proc, {WITHIN}; and whether a process of the host, made for this, is one of them."),
        ("calls_own", "system calls that the workload can make", "", "", False,
         "Functions __x64_sys_* in /proc/kallsyms of the kernel that answers, as far as libseccomp knows their numbers; where a seccomp filter stands before it, the calls that the filter can let through: it is read by ptrace(2) and followed for every number with arguments that can be anything."),
        ("calls_host", "system calls of the host that it can bring about", "", "less", False,
         "The same for the host's threads that do its work: the process, the container's, all of tinyvmm's (together), whose jail allows many of them only with certain arguments. In brackets: what the thread of a virtual CPU may make."),
        ("trusted_size", "programs to be trusted, besides the host's kernel", "MiB", "less", False,
         "The bytes of runc and its libraries, which set the limits and then end; of tinyvmm, which stays. All sides trust the host's kernel as well, the machine its KVM and what is behind the calls of the row above."),
        ("trusted_lines", "lines of code that answer the workload on the host", "", "less", False,
         "Lines of Rust in vmm/ and in all crates that are linked into tinyvmm, neither blank nor comment, up to the tests at the end of a file; what is compiled in of them is less. A process and a container are answered by the host's kernel, whose source is not here."),
        ("devices", "device nodes in /dev", "", "", False,
         f"Character and block devices below /dev, {WITHIN}; the machine's are its own kernel's."),
        ("kernel_log", "the host's kernel log", "", "", False,
         "The workload makes a node for character device 1:11 (/dev/kmsg) and opens it. In the machine that is its own kernel's log."),
    ),
    *_rows(
        "Replicability",
        ("hardware", "whose hardware is seen", "", "", False,
         f"The product's name in DMI, {WITHIN}, against the host's. The processor's name and features are the host's on all sides."),
        ("writes_gone", "writes gone afterwards", "", "", False,
         "The first run writes a file to /etc, the second one looks for it."),
        ("other_host", "the same on another host", "", "", False,
         "Digests of two results, this one's and that of --other FILE: over names, modes, owners and contents of the image's files, as the workload sees them; and over /proc/cpuinfo (without MHz and bogomips), DMI and MAC addresses."),
    ),
)

"""What is compared: every row, with its unit and its method."""

from dataclasses import dataclass
from typing import Tuple

WITHIN = "told by the workload"


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
        "Start and stop",
        ("start", "start to first output", "ms", "less", True,
         "From before the process, the container's overlay and runc, or tinyvmm is started, until the first line of the workload, a shell script, arrives here."),
        ("web", "start to a web server's first answer", "ms", "less", True,
         "The workload starts busybox httpd and asks it over loopback, every ms until it answers; the answer comes back on the console: a pipe, in the machine the serial port. Tinyvmm has no network, so all sides do the same."),
        ("stop", "stop", "ms", "less", True,
         "SIGTERM to the process; runc kill with TERM, runc delete and umount; SIGTERM to tinyvmm, which presses the power button. Until processes, control group and mounts are gone."),
    ),
    *_rows(
        "Memory and processor time",
        ("memory_idle", "memory when idle", "MiB", "less", False,
         "memory.current of the instance's control group: processes, page cache, tmpfs and kernel memory that it was the first to touch. The tree and the image are in the page cache before, and nobody's."),
        ("memory_loaded", "memory under load", "MiB", "less", False,
         "The same while the workload has a file of LOAD MiB in a tmpfs."),
        ("memory_after", "memory after the load has gone", "MiB", "less", False,
         "The same SETTLE s after the file was deleted. The machine gives memory back by free page reporting."),
        ("memory_each", "memory of each of CROWD instances", "MiB", "less", False,
         "The mean of memory.current when CROWD instances are idle at the same time."),
        ("crowd_cache", "page cache that CROWD instances add, together", "MiB", "less", False,
         "What Cached in the host's /proc/meminfo has grown by then, if it has. The tree and the image are in it before, once for all instances; what is added is what each has written."),
        ("crowd_start", "CROWD instances, started one after another", "ms", "less", True,
         "From the start of the first one to the first output of the last one; the next is started when the one before has spoken."),
        ("cpu_idle", "processor time when idle", "ms a second", "less", True,
         "usage_usec in cpu.stat of the control group over IDLE s without a command, from CALM s after the start on."),
    ),
    *_rows(
        "Work",
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
        "Isolation",
        ("kernel", "whose kernel answers", "", "", False,
         f"uname -r and /proc/sys/kernel/random/boot_id, {WITHIN}, against the host's."),
        ("processes", "processes that can be seen", "", "", False,
         f"Entries of /proc, {WITHIN}; and whether a process of the host, made for this, is one of them."),
        ("calls_own", "system calls that the workload can make", "", "", False,
         "Functions __x64_sys_* in /proc/kallsyms of the kernel that answers, as far as libseccomp knows their numbers; where a seccomp filter stands before it, the calls that the filter can let through: it is read by ptrace(2) and followed for every number with arguments that can be anything."),
        ("calls_host", "system calls of the host that it can bring about", "", "less", False,
         "The same for the host's threads that do its work: the process, the container's, all of tinyvmm's (together), whose jail allows many of them only with certain arguments. In brackets: what the thread of a virtual CPU may make."),
        ("devices", "device nodes in /dev", "", "", False,
         f"Character and block devices below /dev, {WITHIN}; the machine's are its own kernel's."),
        ("kernel_log", "the host's kernel log", "", "", False,
         "The workload makes a node for character device 1:11 (/dev/kmsg) and opens it. In the machine that is its own kernel's log."),
    ),
    *_rows(
        "Replicability",
        ("content", "the same content on each run", "", "", False,
         "SHA-256 over names, modes, owners and contents of all files of the image, in two runs; the second one after the first one has written."),
        ("same_machine", "the same machine on each run", "", "", False,
         "SHA-256 over /proc/cpuinfo (without MHz and bogomips), /sys/class/dmi/id and the network devices' MAC addresses, in two runs; and the name that DMI gives. A process and a container see the host: another host is another machine to them. Tinyvmm has no network card."),
        ("writes_gone", "writes gone afterwards", "", "", False,
         "The first run writes a file to /etc, the second one looks for it."),
    ),
)

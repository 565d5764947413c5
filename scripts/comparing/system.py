"""System calls that Python 3.9 has no function for."""

import ctypes
import os
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36
MS_BIND, MS_REC = 0x1000, 0x4000
MS_PRIVATE, MNT_DETACH, CLONE_NEWNS = 0x40000, 2, 0x20000


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = LIBC.mount(source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"cannot mount {kind or source} on {target}")


def unmount(target: Path) -> None:
    """umount2(2), also of what is busy still."""
    _check(LIBC.umount2(bytes(target), MNT_DETACH), f"cannot unmount {target}")


def adopt_orphans() -> None:
    """A container's process becomes our child when runc has ended."""
    _check(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def leave_mounts_to_us() -> None:
    """A mount namespace of our own: what is mounted from here on is nobody else's, and gone with us."""
    _check(LIBC.unshare(CLONE_NEWNS), "cannot make a mount namespace; is this root?")
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


def unmount_below(folder: Path) -> None:
    """Whatever is mounted below `folder`, the last one first."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        points = [line.split()[1].encode().decode("unicode_escape") for line in mounts]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            unmount(Path(point))

"""Control groups (version 2): what an instance takes, whatever it is made of."""

import errno
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
BASE = ROOT / "tinyvmm-compare"


def prepare() -> None:
    """Makes the group of all instances. Raises OSError or ValueError with the remedy."""
    try:
        controllers = (ROOT / "cgroup.controllers").read_text().split()
    except FileNotFoundError:
        controllers = []
    if "memory" not in controllers:
        raise ValueError(f"{ROOT} is no cgroup v2 with the memory controller; use --box")
    (ROOT / "cgroup.subtree_control").write_text("+memory")
    BASE.mkdir(exist_ok=True)
    (BASE / "cgroup.subtree_control").write_text("+memory")


def remove() -> None:
    """Takes the group of all instances away, with what is left in it."""
    for path in BASE.glob("*/"):
        Group(path.name).kill()
    if BASE.exists():
        BASE.rmdir()


class Group:
    """The group of one instance."""

    def __init__(self, name: str) -> None:
        self.path = BASE / name
        self.path.mkdir(exist_ok=True)

    def join(self) -> None:
        """Moves the calling process into it."""
        (self.path / "cgroup.procs").write_text("0")

    def memory(self) -> int:
        """Bytes charged to it: processes, page cache and tmpfs that it touched first, kernel memory."""
        return int((self.path / "memory.current").read_text())

    def cpu(self) -> float:
        """Seconds of processor time that it has used, a virtual machine's guest included."""
        lines = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(lines["usage_usec"]) / 1e6

    def kill(self) -> None:
        """Ends what is left in it, and removes it, unless runc does that at the same moment."""
        try:
            for _ in range(500):
                (self.path / "cgroup.kill").write_text("1")
                if "populated 0" in (self.path / "cgroup.events").read_text():
                    break
                time.sleep(0.01)
            for folder in sorted(self.path.glob("**/"), reverse=True):
                folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

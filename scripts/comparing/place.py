"""Where the comparison runs, and what that means for its figures."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Dict

from comparing.container import RUNC


def _line(command) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]


def _emulated() -> bool:
    """Whether an emulator plays this machine's processor: the KVM box, or any QEMU without KVM."""
    return Path("/run/kvm-box").is_dir() or _line(["systemd-detect-virt", "--vm"]) == "qemu"


def _after(path: str, word: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(word):
            return line.split(":", 1)[1].strip()
    return ""


def kind_of(folder: Path) -> str:
    """The file system that `folder` is on."""
    return _line(["stat", "-f", "-c", "%T", str(folder)])


def describe(folder: Path, tinyvmm: Path, icount: bool) -> Dict[str, Any]:
    """The place, for people to judge the figures by. `icount`: its clock counts instructions."""
    emulated = _emulated()
    return {
        "emulated": emulated,
        "counts_instructions": icount,
        "name": "the KVM box: a machine that QEMU emulates (TCG)" if emulated else "this host",
        "cpu": _after("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_mib": int(_after("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "kernel": platform.release(),
        "file_system": kind_of(folder),
        "runc": _line([RUNC, "--version"]),
        "tinyvmm": _line([str(tinyvmm), "--version"]),
    }

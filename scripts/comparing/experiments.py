"""What is done with an instance to get the figures of rows. Each function returns {row: sample or Missing}."""

import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple

from comparing.sides import Side

MIB = 1 << 20


@dataclass(frozen=True)
class Missing:
    """There is no value, and why; `more` goes into the JSON."""

    reason: str
    more: Optional[Dict[str, Any]] = None


@dataclass(frozen=True)
class Sizes:
    """How much is done: seconds, MiB and instances."""

    load: int = 128
    crowd: int = 10
    idle: float = 3
    seconds: int = 2
    copy: int = 32
    small: int = 4
    large: int = 64
    settle: float = 5
    calm: float = 3

    @classmethod
    def quick(cls) -> "Sizes":
        """For a test of the comparison itself."""
        return cls(load=32, crowd=2, idle=1, seconds=1, copy=4, small=1, large=4, settle=1, calm=1)


Samples = Dict[str, Any]


def life(side: Side, _sizes: Sizes) -> Samples:
    """From the start to the end."""
    running = side.start()
    running.ask("web")
    web = time.monotonic() - running.began
    return {"start": running.first * 1e3, "web": web * 1e3, "stop": running.stop() * 1e3}


def load(side: Side, sizes: Sizes) -> Samples:
    """Nothing to do, something to hold, nothing again."""
    running = side.start()
    time.sleep(sizes.calm)
    used = running.group.cpu()
    time.sleep(sizes.idle)
    used = running.group.cpu() - used
    idle = running.group.memory()
    running.ask(f"fill {sizes.load * MIB}")
    loaded = running.group.memory()
    running.ask("empty")
    time.sleep(sizes.settle)
    after = running.group.memory()
    running.stop()
    return {
        "memory_idle": idle / MIB,
        "memory_loaded": loaded / MIB,
        "memory_after": after / MIB,
        "cpu_idle": used * 1e3 / sizes.idle,
    }


def cached() -> int:
    """Bytes of files that the host has in memory, those of a tmpfs included."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        values = dict(line.split(":") for line in lines)
    return int(values["Cached"].split()[0]) << 10


def crowd(side: Side, sizes: Sizes) -> Samples:
    """Many at once."""
    cache = cached()
    began, instances = time.monotonic(), []
    try:
        for number in range(sizes.crowd):
            instances.append(side.start(number))
        took = time.monotonic() - began
        time.sleep(sizes.calm)
        each = statistics.mean(running.group.memory() for running in instances)
        cache = max(0, cached() - cache)  # others may have given some of theirs back
    finally:
        for running in instances:
            running.stop()
    return {"memory_each": each / MIB, "per_gib": (1 << 30) / each, "crowd_cache": cache / MIB, "crowd_start": took * 1e3}


def work(side: Side, sizes: Sizes) -> Samples:
    """Processor, memory, disk."""
    running = side.start()
    cpus = side.parts.cpus
    one = running.ask(f"cpu {sizes.seconds}")
    several = running.ask(f"cpu {sizes.seconds} {cpus}") if cpus > 1 else None
    copy = running.ask(f"memory {sizes.copy} 5")
    random = running.ask(f"disk randwrite 4k {sizes.small}m --fsync=1")
    write = running.ask(f"disk write 1m {sizes.large}m --end_fsync=1")
    read = running.ask(f"disk read 1m {sizes.large}m")
    running.stop()
    return {
        "cpu_one": float(one["bytes_per_s"]) / MIB,
        "cpu_all": float(several["bytes_per_s"]) / MIB if several else Missing("one processor here"),
        "copy": float(copy["mib_per_s"]),
        "disk_random": float(random["write_iops"]),
        "disk_write": float(write["write_kib"]) / 1024,
        "disk_read": float(read["read_kib"]) / 1024,
    }


EXPERIMENTS: Tuple[Tuple[str, Callable[[Side, Sizes], Samples], Tuple[str, ...]], ...] = (
    ("start and stop", life, ("start", "web", "stop")),
    ("memory", load, ("memory_idle", "memory_loaded", "memory_after", "cpu_idle")),
    ("many at once", crowd, ("memory_each", "per_gib", "crowd_cache", "crowd_start")),
    ("work", work, ("cpu_one", "cpu_all", "copy", "disk_random", "disk_write", "disk_read")),
)

#!/usr/bin/env python3
"""Does the measuring for scripts/compare, as root, where /dev/kvm boots stock kernels; writes JSON."""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparing import facts, groups, place, running, system  # noqa: E402
from comparing.experiments import EXPERIMENTS, Missing, Sizes, life  # noqa: E402
from comparing.rows import ROWS  # noqa: E402
from comparing.running import Failed  # noqa: E402
from comparing.sides import SIDES, Parts, Side  # noqa: E402

FORMAT = 1
Values = Dict[str, Dict[str, List[Any]]]


def say(text: str) -> None:
    print(f"compare: {text}", file=sys.stderr, flush=True)


def summary(samples: List[Any], better: str) -> Dict[str, Any]:
    """A cell: figures, a fact, or the reason why there is none. 99 of 100 samples are no worse than `p99`."""
    good = [sample for sample in samples if not isinstance(sample, Missing)]
    if not good:
        return {"reason": samples[0].reason, **(samples[0].more or {})} if samples else {"reason": "not asked for"}
    if isinstance(good[0], dict):
        return good[0]
    ranked = sorted(good, reverse=better == "more")
    cell = {"n": len(good), "median": statistics.median(good), "p99": ranked[math.ceil(len(good) * 0.99) - 1], "samples": good}
    bad = [sample for sample in samples if isinstance(sample, Missing)]
    return {**cell, "failed": len(bad), "failure": bad[0].reason} if bad else cell


def attempt(side: Side, rows, experiment) -> Dict[str, Any]:
    """The samples of an experiment; if it fails, why."""
    try:
        return experiment()
    except (Failed, OSError, KeyError, ValueError, statistics.StatisticsError) as error:
        say(f"{side.name}: {error}")
        return {row: Missing(f"failed: {error}") for row in rows}
    finally:
        for path in groups.BASE.glob(f"{side.id}-*"):
            groups.Group(path.name).kill()
            side.clean(side.parts.folder / path.name)


def measure(sides: List[Side], rounds: int, sizes: Sizes, only: List[str], lines: Tuple[int, int]) -> Values:
    """All samples, by row and side: one side after another, again and again."""
    values: Values = {row.id: {side.id: [] for side in sides} for row in ROWS}

    def add(side: Side, rows, what: str, experiment) -> None:
        if only and not set(only) & set(rows):
            return
        say(f"{what}: {side.name}")
        for row, sample in attempt(side, rows, experiment).items():
            if not only or row in only:
                values[row][side.id].append(sample)

    for side in sides if sizes != Sizes.quick() else ():
        say(f"warming up: {side.name}")
        attempt(side, (), lambda s=side: life(s, sizes))
    for number in range(rounds):
        for name, experiment, rows in EXPERIMENTS:
            for side in sides:
                what = f"round {number + 1} of {rounds}, {name}"
                add(side, rows, what, lambda e=experiment, s=side: e(s, sizes))
    for side in sides:
        add(side, facts.ROWS, "facts", lambda s=side: facts.of(s, lines))
    return values


def result(values: Values, sides: List[Side], sizes: Sizes, where: Dict[str, Any]) -> Dict[str, Any]:
    """The JSON document, without the time: the box's clock may have jumped."""

    def filled(text: str) -> str:
        for name, size in vars(sizes).items():
            text = text.replace(name.upper(), f"{size:g}")
        return text

    return {
        "format": FORMAT,
        "place": where,
        "sides": [{"id": side.id, "name": side.name, "is": " ".join(side.__doc__.split())} for side in sides],
        "rows": [
            {
                **vars(row),
                "title": filled(row.title),
                "method": filled(row.method),
                "ratio_only": row.clock and where["emulated"],
                "values": {side: summary(samples, row.better) for side, samples in values[row.id].items()},
            }
            for row in ROWS
            if any(values[row.id].values())
        ],
    }


def clean_up(work: Path) -> None:
    """Leaves nothing. The host's /dev is mounted below `work`: should that be so still, rm does not go there."""
    try:
        groups.remove()
        system.unmount_below(work)
    except OSError as error:
        say(f"cannot clean up: {error}")
    subprocess.run(["rm", "-rf", "--one-file-system", str(work)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "kernel", "tinyvmm", "folder", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--icount", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--lines", nargs=2, type=int, default=[0, 0])
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("compare: containers need root; run it with sudo, or with --box")
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    if place.kind_of(arguments.folder) == "overlayfs":  # as in the box: no container's overlay can be above one
        arguments.folder = Path("/dev/shm")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    system.leave_mounts_to_us()
    system.adopt_orphans()
    work = Path(tempfile.mkdtemp(prefix="tinyvmm-compare-", dir=arguments.folder))
    try:
        groups.prepare()
        parts = Parts(work, arguments.images, arguments.kernel, arguments.tinyvmm)
        say("copying the tree and the image")
        parts.copy()
        sides = [kind(parts) for kind in SIDES]
        sizes = Sizes.quick() if arguments.quick else Sizes()
        where = place.describe(work, arguments.tinyvmm, arguments.icount)
        if arguments.icount:
            running.patience = 100.0
        if where["emulated"]:
            parts.keep_programs()
        values = measure(sides, arguments.n, sizes, arguments.only, tuple(arguments.lines))
        arguments.output.write_text(json.dumps(result(values, sides, sizes, where), indent=1, ensure_ascii=False) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"compare: {error}")
    finally:
        clean_up(work)


if __name__ == "__main__":
    main()

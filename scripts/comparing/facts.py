"""What can be said without a clock: isolation and replicability."""

import subprocess
from pathlib import Path
from typing import Any, Dict, Optional

from comparing import filters
from comparing.experiments import Missing
from comparing.running import Running
from comparing.sides import Side

CALL = "__x64_sys_"
MARKER = "1000003"  # seconds that a process of the host sleeps, which nothing else does
ROWS = ("kernel", "processes", "calls_own", "calls_host", "devices", "kernel_log", "content", "same_machine", "writes_gone")


def fact(text: str, number: Optional[int] = None, good: Optional[bool] = None) -> Dict[str, Any]:
    """A value in words; with the number in it, and whether it is what one wants, if that can be said."""
    optional = {"number": number, "good": good}
    return {"text": text, **{key: value for key, value in optional.items() if value is not None}}


def of(side: Side) -> Dict[str, Any]:
    """All facts about `side`, from two runs."""
    marker = subprocess.Popen(["sleep", MARKER])
    try:
        running = side.start()
        seen = running.ask(f"look [{MARKER[0]}]{MARKER[1:]}")
        calls = system_calls(side, running, seen)
        first = {**running.ask("machine"), **running.ask("content", 300)}
        running.ask("mark")
        running.stop()
        running = side.start()
        marked = running.ask("marked")
        second = {**running.ask("machine"), **running.ask("content", 300)}
        running.stop()
    finally:
        marker.kill()
        marker.wait()
    return {**isolation(seen), **calls, **replicability(seen, first, second, "marked" in marked)}


def isolation(seen: Dict[str, str]) -> Dict[str, Any]:
    """Rows from what the workload has seen."""
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip() == seen["boot_id"]
    others = "the host’s among them" if seen["hosts"] != "0" else "none of the host’s"
    if host:
        log = "readable" if "kmsg" in seen else "not readable"
    else:
        log = "its own kernel’s only"
    return {
        "kernel": fact(f"{'the host’s' if host else 'its own'}, {seen['release']}", good=not host),
        "processes": fact(f"{seen['processes']}, {others}", int(seen["processes"]), seen["hosts"] == "0"),
        "devices": fact(f"{seen['devices']} {'of the host’s' if host else 'of its own kernel’s'}", int(seen["devices"])),
        "kernel_log": fact(log, good="not" in log or not host),
    }


def system_calls(side: Side, running: Running, seen: Dict[str, str]) -> Dict[str, Any]:
    """Rows about the calls that are possible."""
    try:
        kernel = filters.of_kernel(line.split()[2][len(CALL):] for line in open("/proc/kallsyms") if f" {CALL}" in line)
        own = filters.of_kernel(seen["calls"].split())
        limits = {tid: filters.of_thread(tid) for tid in side.threads(running)}
        passes = {tid: filters.allowed(programs, kernel) for tid, programs in limits.items()}
    except (OSError, ValueError) as error:
        return {row: Missing(f"the filter cannot be read: {error}") for row in ("calls_own", "calls_host")}
    some = set().union(*(numbers for numbers, _ in passes.values()))
    always = set().union(*(numbers for _, numbers in passes.values()))
    text = f"{len(some)}, {len(some - always)} of them only with certain arguments"
    if not any(limits.values()):
        text = f"all {len(kernel)}"
    of_host = fact(text + vcpu(passes), len(some))
    if side.id == "machine":
        return {"calls_own": fact(f"all {len(own)} of its own kernel", len(own)), "calls_host": of_host}
    return {"calls_own": of_host, "calls_host": of_host}


def vcpu(passes: Dict[int, Any]) -> str:
    """How many of them a virtual CPU's thread may make, if there is one."""
    for tid, (some, _) in passes.items():
        if Path(f"/proc/{tid}/comm").read_text().startswith("vcpu"):
            return f" (virtual CPU: {len(some)})"
    return ""


def replicability(seen: Dict[str, str], first: Dict[str, str], second: Dict[str, str], marked: bool) -> Dict[str, Any]:
    """Rows from two runs."""

    def same(name: str, more: str = "") -> Dict[str, Any]:
        if first[name] == second[name]:
            return fact(f"yes, {first[name]}{more}", good=True)
        return fact(f"no: {first[name]}, {second[name]}{more}", good=False)

    product = seen.get("product") or "no name"
    return {
        "content": same("content"),
        "same_machine": same("machine", f", {product}"),
        "writes_gone": fact("no" if marked else "yes", good=not marked),
    }

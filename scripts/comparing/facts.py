"""What can be said without a clock: simplicity, security and replicability."""

import http.client
import subprocess
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from comparing import filters, running
from comparing.experiments import MIB, Missing
from comparing.running import Failed, Running
from comparing.sides import Side

CALL = "__x64_sys_"
MARKER = "1000003"  # seconds that a process of the host sleeps, which nothing else does
ROWS = ("kernel", "processes", "calls_own", "calls_host", "devices", "kernel_log", "hardware", "writes_gone", "other_host",
        "image_size", "steps", "web_host", "trusted_size", "trusted_lines")


def fact(text: str, number: Optional[int] = None, good: Optional[bool] = None) -> Dict[str, Any]:
    """A value in words; with the number in it, and whether it is what one wants, if that can be said."""
    optional = {"number": number, "good": good}
    return {"text": text, **{key: value for key, value in optional.items() if value is not None}}


def of(side: Side, lines: Tuple[int, int]) -> Dict[str, Any]:
    """All facts about `side`, from two runs. `lines` of tinyvmm's own and of its crates were counted before."""
    marker = subprocess.Popen(["sleep", MARKER])
    try:
        instance = side.start()
        seen = instance.ask(f"look [{MARKER[0]}]{MARKER[1:]}")
        calls = system_calls(side, instance, seen)
        digests = {**instance.ask("machine"), **instance.ask("content", 300)}
        web = web_from_host(instance)
        instance.ask("mark")
        instance.stop()
        instance = side.start()
        marked = "marked" in instance.ask("marked")
        instance.stop()
    finally:
        marker.kill()
        marker.wait()
    return {**isolation(seen), **calls, **replicability(seen, digests, marked), **sizes(side, lines), "web_host": web}


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


def system_calls(side: Side, instance: Running, seen: Dict[str, str]) -> Dict[str, Any]:
    """Rows about the calls that are possible."""
    try:
        kernel = filters.of_kernel(line.split()[2][len(CALL):] for line in open("/proc/kallsyms") if f" {CALL}" in line)
        own = filters.of_kernel(seen["calls"].split())
        limits = {tid: filters.of_thread(tid) for tid in side.threads(instance)}
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


def replicability(seen: Dict[str, str], digests: Dict[str, str], marked: bool) -> Dict[str, Any]:
    """Rows from what was seen, and from whether the second run has found what the first one wrote."""
    try:
        host = Path("/sys/class/dmi/id/product_name").read_text().strip()
    except OSError:
        host = ""
    product = seen.get("product", "")
    whose = "its own" if product != host else "the host’s"
    kept = {name: digests[name] for name in ("content", "machine")}
    return {
        "hardware": fact(f"{whose}, {product or 'without a name'}", good=product != host),
        "writes_gone": fact("no" if marked else "yes", good=not marked),
        "other_host": Missing("there is one host here; --other FILE compares with another one's result", {"digests": kept}),
    }


def web_from_host(instance: Running) -> Any:
    """Whether the host gets the workload's page."""
    try:
        answer = instance.ask("web")["answer"]
    except Failed as error:
        return Missing(str(error))
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=2 * running.patience)
        connection.request("GET", "/")
        got = connection.getresponse().read().decode(errors="replace").strip() == answer
    except (OSError, http.client.HTTPException):
        got = False
    return fact("yes" if got else "no", good=got)


def sizes(side: Side, lines: Tuple[int, int]) -> Dict[str, Any]:
    """Rows about what is shipped, typed and trusted."""
    own, crates = lines
    trusted = Missing("the host’s kernel answers, whose source is not here")
    if side.id == "machine":
        trusted = fact(f"{own:,} of tinyvmm’s own, at most {crates:,} of its crates", own + crates) if own else Missing("cargo does not report the crates")
    return {
        "image_size": side.shipped() / MIB,
        "steps": fact(f"{len(side.steps)}: {'; '.join(side.steps)}", len(side.steps)),
        "trusted_size": sum(path.stat().st_size for path in side.programs()) / MIB,
        "trusted_lines": trusted,
    }

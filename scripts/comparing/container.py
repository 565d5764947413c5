"""What a container is made of: an OCI bundle as `runc spec` makes it, with Podman's default limits."""

import json
import os
import re
import select
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from comparing import running, system
from comparing.groups import BASE, ROOT, Group
from comparing.running import Failed

RUNC = os.environ.get("RUNC", "runc")


def spec(images: Path, folder: Path) -> Dict[str, Any]:
    """The configuration that all containers share. `images` has Podman's defaults."""
    subprocess.run([RUNC, "spec", "--bundle", str(folder)], check=True)
    made = json.loads((folder / "config.json").read_text())
    allowed = capabilities(images)
    made["process"].update(terminal=False, args=["/compare/workload"], cwd="/")
    made["process"]["capabilities"] = {kind: allowed for kind in ("bounding", "effective", "permitted")}
    made["root"] = {"path": "merged", "readonly": False}
    for folder_name in ("/tmp", "/run"):
        made["mounts"].append({"destination": folder_name, "type": "tmpfs", "source": "tmpfs"})
    profile = json.loads((images / "seccomp.json").read_text())
    made["linux"]["seccomp"] = seccomp(profile, allowed)
    return made


def capabilities(images: Path) -> List[str]:
    """Those that Podman gives a container by default."""
    text = (images / "containers.conf").read_text()
    listed = re.search(r"^default_capabilities = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    if not listed:
        raise ValueError(f"{images}/containers.conf has no default_capabilities")
    return ["CAP_" + name for name in re.findall(r'"(\w+)"', listed[1])]


def seccomp(profile: Dict[str, Any], allowed: List[str]) -> Dict[str, Any]:
    """Podman's profile as runc wants it: its rules that hold for x86-64 and these capabilities."""

    def holds(rule: Dict[str, Any]) -> bool:
        only, but = rule.get("includes") or {}, rule.get("excludes") or {}
        if "amd64" not in only.get("arches", ["amd64"]) or "amd64" in but.get("arches", []):
            return False
        return set(only.get("caps", [])) <= set(allowed) and not set(but.get("caps", [])) & set(allowed)

    keep = ("names", "action", "args", "errnoRet")
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{key: rule[key] for key in keep if rule.get(key)} for rule in profile["syscalls"] if holds(rule)],
    }


def prepare(shared: Dict[str, Any], folder: Path, group: Group) -> Path:
    """Writes the bundle of one container to `folder`; returns where its root is to be mounted."""
    made = json.loads(json.dumps(shared))
    made["linux"]["cgroupsPath"] = "/" + str((BASE / group.path.name).relative_to(ROOT))
    (folder / "config.json").write_text(json.dumps(made))
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir()
    return folder / "merged"


def mount(tree: Path, folder: Path, merged: Path) -> None:
    """An overlay takes the container's writes; the tree below is shared."""
    options = f"lowerdir={tree},upperdir={folder}/upper,workdir={folder}/work"
    system.mount("overlay", merged, "overlay", options=options)


def wait(pid: int) -> None:
    """Until our child `pid` has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(30_000 * running.patience):
            raise Failed("it did not stop within 30 s")
    finally:
        os.close(descriptor)
    os.waitpid(pid, 0)

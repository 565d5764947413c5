"""How many lines of code tinyvmm is made of: its own, and those of the crates that are linked into it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterable, Set, Tuple


def of(repository: Path, binary: Path) -> Tuple[int, int]:
    """Lines of tinyvmm's own and of its crates; (0, 0) where cargo, or what it left beside `binary`, does not report them."""
    command = ["cargo", "metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    try:
        made = subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0, 0
    metadata = json.loads(made)
    packages = {package["id"]: package for package in metadata["packages"]}
    linked = _linked(metadata, packages)
    own = set(metadata["workspace_members"])
    files = _compiled(repository, binary.parent / "deps")

    def lines(names: Set[str]) -> int:
        folders = tuple(f"{Path(packages[name]['manifest_path']).parent}/src/" for name in names)
        inside = [path for path in files if path.startswith(folders) and os.path.isfile(path)]
        return sum(code_lines(Path(path).read_text(errors="replace")) for path in inside)

    found = lines(linked & own), lines(linked - own)
    return found if all(found) else (0, 0)


def _compiled(repository: Path, folder: Path) -> Set[str]:
    """The files that a compiler has read, as it noted: of a crate for many systems, those for this one."""
    files = set()
    for note in folder.glob("*.d"):
        for line in note.read_text(errors="replace").splitlines():
            if line.endswith(".rs:"):
                files.add(os.path.join(repository, line[:-1].replace("\\ ", " ")))
    return files


def _linked(metadata: Dict[str, Any], packages: Dict[str, Any]) -> Set[str]:
    """The packages that end up in the binary: no tools of the build, nothing for tests."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo = [name for name in metadata["workspace_members"] if any(_makes(packages[name], "tinyvmm"))]
    found: Set[str] = set()
    while todo:
        name = todo.pop()
        if name in found or any("proc-macro" in target["kind"] for target in packages[name]["targets"]):
            continue
        found.add(name)
        todo += [needs["pkg"] for needs in nodes[name]["deps"] if any(kind["kind"] is None for kind in needs["dep_kinds"])]
    return found


def _makes(package: Dict[str, Any], command: str) -> Iterable[bool]:
    return ("bin" in target["kind"] and target["name"] == command for target in package["targets"])


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment, up to a module of tests at the end."""
    lines = [line.strip() for line in text.partition("\n#[cfg(test)]\nmod tests {")[0].splitlines()]
    return sum(1 for line in lines if line and not line.startswith("//"))

"""The three ways to run the workload: a plain process, a container, a machine."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Set, Tuple

from comparing import container, running, system
from comparing.groups import Group
from comparing.running import Failed, Running


UUID = "74696e79-766d-6d20-636f-6d7061726500"


@dataclass
class Parts:
    """What all sides are made of. `folder` is on the file system whose speed is compared."""

    folder: Path
    images: Path
    kernel: Path
    tinyvmm: Path
    memory: str = "512M"
    cpus: int = os.cpu_count() or 1

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def image(self) -> Path:
        return self.folder / "image"

    def copy(self) -> None:
        """Puts tree and image into the folder: so they are in the page cache, and charged to no instance."""
        shutil.copytree(self.images / "root", self.tree, symlinks=True)
        for path, folders, files in os.walk(self.tree):
            for name in [".", *folders, *files]:
                os.chown(os.path.join(path, name), 0, 0, follow_symlinks=False)
        # With its holes.
        subprocess.run(["cp", "--sparse=always", self.images / "image", self.image], check=True)

    @staticmethod
    def runc() -> Set[Path]:
        """The program runc, and its libraries."""
        runc = shutil.which(container.RUNC)
        libraries = re.findall(r"(/\S+) \(", subprocess.run(["ldd", runc], capture_output=True, text=True, check=False).stdout)
        return {Path(path).resolve() for path in (runc, *libraries)}

    def keep_programs(self) -> None:
        """Puts copies in the folder over the programs of the sides: reading those would be slow, as they are elsewhere."""
        copies = self.folder / "programs"
        copies.mkdir()
        for path in map(str, {*self.runc(), self.tinyvmm.resolve(), self.kernel.resolve(), Path("/etc/ld.so.cache")}):
            if os.path.exists(path):
                copy = copies / path.replace("/", "_")
                shutil.copy(path, copy)
                system.mount(str(copy), Path(path), "", system.MS_BIND)


class Side:
    """One way to run the workload."""

    id: str
    name: str

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def start(self, number: int = 0) -> Running:
        """Starts instance `number`; returns at its first output."""
        group = Group(f"{self.id}-{number}")
        folder = self.parts.folder / f"{self.id}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            return self._start(group, folder)
        except BaseException:
            self.clean(folder)
            group.kill()
            raise

    def _start(self, group: Group, folder: Path) -> Running:
        raise NotImplementedError

    def clean(self, folder: Path) -> None:
        """Takes away what a failed start has left."""

    def shipped(self) -> int:
        """Bytes of what has to be there before a start."""
        files = (Path(path, name) for path, _, names in os.walk(self.parts.images / "root") for name in names)
        return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())

    def programs(self) -> Set[Path]:
        """The programs that stand between the workload and the host."""
        return set()

    def threads(self, running: Running) -> List[int]:
        """The threads on the host that do the workload's work, or act for it."""
        return [int(tid) for tid in os.listdir(f"/proc/{running.process.pid}/task")]

    def _popen(self, command: List[str], folder: Path, **options) -> subprocess.Popen:
        with open(folder / "errors", "wb") as errors:
            pipe = subprocess.PIPE
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True, **options)


def wait(process: subprocess.Popen) -> None:
    """Until it has ended."""
    try:
        process.wait(30 * running.patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Failed("it did not stop within 30 s") from None


def end_by_signal(running: Running) -> None:
    """SIGTERM, and until the process is gone."""
    running.process.send_signal(signal.SIGTERM)
    wait(running.process)


class Plain(Side):
    """A process with another root folder, and nothing else of its own: what it writes stays."""

    id, name = "process", "process"
    steps = ("chroot TREE httpd",)

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        for folder in ("proc", "sys", "dev"):
            system.mount(f"/{folder}", parts.tree / folder, "", system.MS_BIND | system.MS_REC)
        for folder in ("tmp", "run"):
            system.mount("tmpfs", parts.tree / folder, "tmpfs")

    def _start(self, group: Group, folder: Path) -> Running:
        def enter() -> None:
            group.join()
            os.chroot(self.parts.tree)
            os.chdir("/")

        began = time.monotonic()
        process = self._popen(["/compare/workload"], folder, preexec_fn=enter)
        return Running(process, group, began, end_by_signal)


class Machine(Side):
    """tinyvmm with the small kernel, all of the host's processors, and an overlay over the image."""

    id, name = "machine", "tinyvmm"
    steps = ("tinyvmm --kernel KERNEL --disk IMAGE,overlay", "httpd, at its console")

    def _start(self, group: Group, folder: Path) -> Running:
        parts = self.parts
        command = [str(parts.tinyvmm), "--cpus", str(parts.cpus), "--mem", parts.memory]
        command += ["--kernel", str(parts.kernel), "--disk", f"{parts.image},overlay"]
        command += ["--uuid", UUID, "--cmdline", "quiet init=/compare/init"]
        began = time.monotonic()
        process = self._popen(command, folder, preexec_fn=group.join, env={**os.environ, "TMPDIR": str(folder)})
        try:
            return Running(process, group, began, end_by_signal)
        except Failed as failed:
            process.kill()
            process.wait()
            said = (folder / "errors").read_text(errors="replace").strip().splitlines()
            raise Failed(f"{failed}: {said[-1]}" if said else str(failed)) from None

    def shipped(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in (self.parts.images / "image", self.parts.kernel))

    def programs(self) -> Set[Path]:
        return {self.parts.tinyvmm}


class Container(Side):
    """runc with Podman's capabilities and system call filter; the tree below an overlay of its own."""

    id, name = "container", "runc"
    steps = ("runc spec", "edit config.json: root, command, limits", "mount the overlay", "runc run NAME, with httpd as its command")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.spec = container.spec(parts.images, parts.folder)
        self.runc = [container.RUNC, "--root", str(parts.folder / "runc")]

    def _start(self, group: Group, folder: Path) -> Running:
        merged = container.prepare(self.spec, folder, group)
        began = time.monotonic()
        container.mount(self.parts.tree, folder, merged)
        pid_file = folder / "pid"
        command = [*self.runc, "run", "--detach", "--bundle", str(folder), "--pid-file", str(pid_file), folder.name]
        process = self._popen(command, folder)

        def end(running: Running) -> None:
            subprocess.run([*self.runc, "kill", folder.name, "TERM"], check=True)
            container.wait(int(pid_file.read_text()))
            subprocess.run([*self.runc, "delete", folder.name], check=True)
            system.unmount(merged)

        try:
            running = Running(process, group, began, end)
        except Failed as failed:
            said = (folder / "errors").read_text(errors="replace").strip().splitlines()
            raise Failed(f"{failed}: {said[-1]}" if said else str(failed)) from None
        wait(process)
        running.pid = int(pid_file.read_text())
        return running

    def programs(self) -> Set[Path]:
        return self.parts.runc()

    def clean(self, folder: Path) -> None:
        subprocess.run([*self.runc, "delete", "--force", folder.name], stderr=subprocess.DEVNULL, check=False)
        if os.path.ismount(folder / "merged"):
            system.unmount(folder / "merged")

    def threads(self, running: Running) -> List[int]:
        return [running.pid]


SIDES = (Plain, Container, Machine)

"""One instance of the workload that runs: its console, and its end."""

import os
import select
import time
from subprocess import Popen
from typing import Callable, Dict

from comparing.groups import Group


patience = 1.0
"""What time limits are multiplied by: more than 1 where the clock may jump."""


class Failed(Exception):
    """An instance did not do what it was to do; the text is the reason that the result states."""


class Running:
    """The workload, started by `process` at `began`, in `group`. `end` asks it to stop and waits until all is gone."""

    def __init__(self, process: Popen, group: Group, began: float, end: Callable[["Running"], None]) -> None:
        self.process, self.group, self._end = process, group, end
        self.pid = process.pid
        self._rest = b""
        self._expect("first", 60)
        self.began = began
        self.first = time.monotonic() - began
        """Seconds from the start to the first output."""

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise Failed("no answer in time")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise Failed("it ended early")
            self._rest += data
            if len(self._rest) > 1 << 20:
                raise Failed("it printed a line of more than 1 MiB")
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode(errors="replace").strip("\r")

    def _expect(self, last: str, seconds: float) -> Dict[str, str]:
        """The lines `NAME=VALUE` up to the one that is named `last`."""
        deadline, found = time.monotonic() + seconds * patience, {}
        while last not in found:
            name, equals, value = self._line(deadline).partition("=")
            if equals:
                found[name] = value
        return found

    def ask(self, command: str, seconds: float = 120) -> Dict[str, str]:
        """What the workload answers to `command`."""
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        found = self._expect("done", seconds)
        if found["done"] != "0":
            raise Failed(f"'{command}' failed with status {found['done']}")
        return found

    def stop(self) -> float:
        """Seconds from the wish to stop it until nothing of it is left."""
        began = time.monotonic()
        self._end(self)
        self.group.kill()
        seconds = time.monotonic() - began
        self.process.stdin.close()
        self.process.stdout.close()
        return seconds

"""Fills the row about another host, from two results."""

from typing import Any, Dict

ROW = "other_host"
NAMES = (("content", "files"), ("machine", "hardware"))


def digests(result: Dict[str, Any], side: str) -> Dict[str, str]:
    """What a side of a result has seen; nothing if it was not asked for."""
    cells = [row["values"].get(side, {}) for row in result["rows"] if row["id"] == ROW]
    return cells[0].get("digests", {}) if cells else {}


def compare(result: Dict[str, Any], other: Dict[str, Any]) -> None:
    """Says in `result` what `other` has the same."""
    for row in result["rows"]:
        for side in row["values"] if row["id"] == ROW else ():
            here, there = digests(result, side), digests(other, side)
            if not here or not there:
                row["values"][side] = {"reason": "the other result has no such row"}
                continue
            same = {name: here[name] == there[name] for name, _ in NAMES}
            text = ", ".join(f"{words} {'the same' if same[name] else 'others'}" for name, words in NAMES)
            row["values"][side] = {"text": text, "good": all(same.values()), "digests": here}

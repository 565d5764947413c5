"""What the rows say, in one sentence for each topic: the machine against the container."""

import math
from itertools import groupby
from typing import Any, Dict, List, NamedTuple, Tuple

from comparing.table import number

SAME, LEAST = 1.05, 0.1  # a gap of a lesser factor, or of less than that of its unit, is none
NAMED = 4  # so many rows at most are named in a place of a sentence


class Gap(NamedTuple):
    """A row's two values as words, and how far they are apart: a factor, infinite for facts."""

    factor: float
    words: str


def gap(row: Dict[str, Any]) -> Tuple[str, Gap]:
    """"ahead", "behind" or "level" for the machine, "without" a value to compare, or nothing if neither is better."""
    machine, container = row["values"].get("machine", {}), row["values"].get("container", {})
    ours, theirs = machine.get("median", machine.get("number")), container.get("median", container.get("number"))
    if "good" in machine and "good" in container:
        place = "level" if machine["good"] == container["good"] else "ahead" if machine["good"] else "behind"
        text = machine["text"] if place == "level" else f"{machine['text']}, against {container['text']}"
        return place, Gap(math.inf, f"{row['title']} ({text})")
    if not row["better"] and "reason" not in machine and "reason" not in container:
        return "", Gap(0, "")
    if not row["better"] or ours is None or theirs is None:
        return "without", Gap(0, row["title"])
    least, most = sorted((ours, theirs))
    factor = 1 if most - least < LEAST else most / least if least else math.inf
    place = "level" if factor < SAME else "ahead" if (ours < theirs) == (row["better"] == "less") else "behind"
    unit = f" {row['unit']}" if row["unit"] else ""
    times = f", {number(factor)}×" if SAME <= factor < math.inf else ""
    return place, Gap(factor, f"{row['title']} ({number(ours)} against {number(theirs)}{unit}{times})")


def listed(gaps: List[Gap]) -> str:
    """The widest gaps first, and how many more there are."""
    ranked = [gap.words for gap in sorted(gaps, key=lambda gap: -gap.factor)]
    more = len(ranked) - NAMED
    return "; ".join(ranked[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def sentence(rows: List[Dict[str, Any]], ours: str, theirs: str) -> str:
    """What a topic's rows say of the machine, named `ours`, against the container, named `theirs`."""
    found: Dict[str, List[Gap]] = {}
    for row in rows:
        place, words = gap(row)
        found.setdefault(place, []).append(words)
    parts = [f"{place} {of} {theirs} in {listed(found[place])}" for place, of in (("ahead", "of"), ("behind", "")) if place in found]
    if "level" in found:
        parts.append(f"level with {theirs} in {listed(found['level'])}")
    said = f"{ours} is " + " — ".join(" ".join(part.split()) for part in parts) if parts else "no row compares the two"
    if "without" in found:
        said += f" — not compared: {'; '.join(gap.words for gap in found['without'])}"
    if any(row["ratio_only"] for row in rows):
        said += " — what depends on time is by an emulator’s clock"
    return said + "."


def findings(result: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Topics, each with its sentence."""
    names = {side["id"]: side["name"] for side in result["sides"]}
    ours, theirs = names.get("machine", "the machine"), names.get("container", "the container")
    return [(topic, sentence(list(rows), ours, theirs)) for topic, rows in groupby(result["rows"], key=lambda row: row["group"])]

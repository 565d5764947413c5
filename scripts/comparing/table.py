"""The comparison as text for a terminal."""

from typing import Any, Dict, List

WIDTH = 46


def number(value: float) -> str:
    """Three digits that count, thousands apart; a whole number as it is."""
    digits = 0 if abs(value) >= 99.95 or value == int(value) else 1 if abs(value) >= 9.995 else 2
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # no "-0.00"


def heading(row: Dict[str, Any]) -> str:
    """Title and unit; a tilde for what is a ratio only."""
    return row["title"] + (f", {row['unit']}" if row["unit"] else "") + (" ~" if row["ratio_only"] else "")


def is_fact(row: Dict[str, Any]) -> bool:
    """Whether the row's values are words."""
    return any("text" in cell for cell in row["values"].values())


def cell_text(cell: Dict[str, Any], notes: List[str]) -> str:
    """What stands in a column; a reason becomes a note."""
    if "median" in cell:
        return f"{number(cell['median'])} ({number(cell['p99'])})"
    if cell["reason"] not in notes:
        notes.append(cell["reason"])
    return f"- [{notes.index(cell['reason']) + 1}]"


def text(result: Dict[str, Any]) -> str:
    """The whole table."""
    sides, place, notes, group = result["sides"], result["place"], [], ""
    lines = [f"Where: {place['name']}; {place['cpu']}, {place['cpus']} processor(s), {place['file_system']}, Linux {place['kernel']}"]
    for row in result["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"{group:<{WIDTH}}" + "".join(f"{side['name']:>20}" for side in sides)]
        if is_fact(row):
            lines.append("  " + heading(row))
            for side in sides:
                cell = row["values"][side["id"]]
                lines.append(f"    {side['name']:<10}{cell.get('text') or 'none: ' + cell['reason']}")
        else:
            cells = (cell_text(row["values"][side["id"]], notes) for side in sides)
            lines.append(f"  {heading(row):<{WIDTH - 2}}" + "".join(f"{cell:>20}" for cell in cells))
    lines += ["", "median (99th percentile: 99 of 100 samples are no worse)"]
    if any(row["ratio_only"] for row in result["rows"]):
        counted = place["counts_instructions"]
        lines.append("~ good for comparing the columns only: an emulator plays the processor here, " + (
            "its clock counts instructions, and an exit of the machine costs no more than they do" if counted
            else "and the machine pays for that with each exit"))
    lines += [f"[{index + 1}] {note}" for index, note in enumerate(notes)]
    return "\n".join(lines)

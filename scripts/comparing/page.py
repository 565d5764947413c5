"""The comparison as one HTML page that needs nothing else."""

from html import escape
from itertools import groupby
from typing import Any, Dict, List

from comparing.findings import findings
from comparing.table import is_fact, number

LEFT, RIGHT, STEP, BAR = 62, 140, 22, 13
WIDTH = 380
STYLE = """
:root { color-scheme: light dark; --back: #fbfaf7; --card: #fff; --text: #22252a; --soft: #646b75; --line: #dedbd2;
  --process: #8b929c; --container: #2f7fb8; --machine: #d2691e; --note: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1d2024; --text: #e6e4df; --soft: #9aa1ab;
  --line: #33373d; --process: #7b838e; --container: #58a6dc; --machine: #ef8d4b; --note: #3a3116; } }
body { margin: 0 auto; max-width: 1120px; padding: 28px 16px 40px; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 28px 0 8px; } p { margin: 6px 0; }
h3 { font-size: 15px; margin: 0; } .soft, summary, details p { color: var(--soft); font-size: 13px; }
.note { background: var(--note); border-radius: 6px; padding: 8px 12px; margin: 12px 0; }
.row { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 10px; }
.row h3 span { display: block; font-weight: normal; color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; max-width: 480px; height: auto; margin: 6px 0 2px; } svg text { fill: var(--text); font-size: 12.5px; }
svg .soft { fill: var(--soft); } svg line { stroke: var(--text); stroke-width: 1.5; }
.process { fill: var(--process); } .container { fill: var(--container); } .machine { fill: var(--machine); }
dl { display: grid; grid-template-columns: 84px 1fr; margin: 6px 0 2px; gap: 2px 0; } dd { margin: 0; }
dt { color: var(--soft); } .found { grid-template-columns: 130px 1fr; gap: 8px 12px; } .found dt { font-weight: bold; color: var(--text); }
"""


def bars(row: Dict[str, Any], sides: List[Dict[str, Any]]) -> str:
    """A bar for each side's median, a whisker to its 99th percentile, and the figures."""
    cells = [(side, row["values"][side["id"]]) for side in sides]
    highest = {key: max((cell[key] for _, cell in cells if key in cell), default=0) for key in ("median", "p99")}
    # One sample that is far off must not make the bars too short to be seen: its whisker is cut off.
    most = max(highest["median"], min(highest["p99"], 1.5 * highest["median"])) or 1
    room, parts = WIDTH - LEFT - RIGHT, []
    for index, (side, cell) in enumerate(cells):
        top = index * STEP + 4
        middle = top + BAR / 2
        parts.append(f'<text x="0" y="{top + 12}">{escape(side["name"])}</text>')
        if "median" not in cell:
            parts.append(f'<text class="soft" x="{LEFT}" y="{top + 12}">no value: {escape(cell["reason"])}</text>')
            continue
        end, tail = (LEFT + room * min(cell[key] / most, 1) for key in ("median", "p99"))
        parts.append(f'<rect class="{escape(side["id"])}" x="{LEFT}" y="{top}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" rx="2"/>')
        parts.append(f'<line x1="{end:.1f}" y1="{middle}" x2="{tail:.1f}" y2="{middle}"/>')
        parts.append(f'<line x1="{tail:.1f}" y1="{top + 3}" x2="{tail:.1f}" y2="{top + BAR - 3}"/>')
        figures = f'{number(cell["median"])} <tspan class="soft">({number(cell["p99"])})</tspan>'
        parts.append(f'<text x="{max(end, tail) + 8:.1f}" y="{top + 12}">{figures}</text>')
    height = len(cells) * STEP + 2
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(row["title"])}">{"".join(parts)}</svg>'


def words(row: Dict[str, Any], sides: List[Dict[str, Any]]) -> str:
    """What each side has, in words."""
    cells = ((side["name"], row["values"][side["id"]]) for side in sides)
    text = (f"<dt>{escape(name)}</dt><dd>{escape(cell.get('text') or 'no value: ' + cell['reason'])}</dd>" for name, cell in cells)
    return f"<dl>{''.join(text)}</dl>"


def hint(row: Dict[str, Any]) -> str:
    """Unit, what is better, and how far to believe it."""
    better = {"less": "less is better", "more": "more is better"}.get(row["better"], "")
    ratio = "ratios only" if row["ratio_only"] else ""
    samples = {cell["n"] for cell in row["values"].values() if "n" in cell}
    runs = f"n = {max(samples)}" if samples else ""
    failed = sum(cell.get("failed", 0) for cell in row["values"].values())
    runs += f", {failed} failed" if failed else ""
    return " · ".join(part for part in (row["unit"], better, runs, ratio) if part)


def card(row: Dict[str, Any], sides: List[Dict[str, Any]]) -> str:
    """One row."""
    body = words(row, sides) if is_fact(row) else bars(row, sides)
    title = f"<h3>{escape(row['title'])} <span>{escape(hint(row))}</span></h3>"
    return f'<div class="row">{title}{body}<details><summary>method</summary><p>{escape(row["method"])}</p></details></div>'


EMULATED = (
    "An emulator plays the processor here, its virtualization included, in software: the machine pays for that with each exit and "
    "each TLB miss. What is marked “ratios only” depends on it, to the machine’s disadvantage; memory, isolation and replicability do not."
)
COUNTED = (
    "An emulator plays the processor here, and its clock counts instructions: 1 ms is 1,000,000 of them. That can be repeated on any "
    "host, but what is dear on hardware costs no more than the rest: an exit of the machine, a TLB miss, a flushed disk. What is marked "
    "“ratios only” depends on it, mostly to the machine’s advantage; memory, isolation and replicability do not."
)


def note(place: Dict[str, Any]) -> str:
    """How far the place's clock can be believed."""
    if not place["emulated"]:
        return ""
    return f'<p class="note">{COUNTED if place["counts_instructions"] else EMULATED}</p>'


def head(result: Dict[str, Any]) -> str:
    """What was found; then what was compared, and where."""
    place, sides = result["place"], result["sides"]
    text = "".join(f"<dt>{escape(side['name'])}</dt><dd>{escape(side['is'])}</dd>" for side in sides)
    found = "".join(f"<dt>{escape(topic)}</dt><dd>{escape(said)}</dd>" for topic, said in findings(result))
    return (
        "<h1>The same workload: a process, a container, a machine</h1>"
        f'<dl class="found">{found}</dl>{note(place)}<h2>Evidence</h2>'
        f'<p class="soft">{escape(result["when"])} · {escape(place["name"])} · {escape(place["cpu"])}, {place["cpus"]} processor(s), '
        f'{place["memory_mib"]} MiB · Linux {escape(place["kernel"])} · {escape(place["file_system"])} · '
        f'{escape(place["runc"])} · {escape(place["tinyvmm"])}</p>'
        f"<dl>{text}</dl>"
    )


def page(result: Dict[str, Any]) -> str:
    """The whole page."""
    sides, parts = result["sides"], [head(result)]
    for group, rows in groupby(result["rows"], key=lambda row: row["group"]):
        cards = "".join(card(row, sides) for row in rows)
        parts.append(f'<h2>{escape(group)}</h2><div class="cards">{cards}</div>')
    foot = '<p class="soft">Bars are medians, the thin line ends at the 99th percentile (in brackets): 99 of 100 samples are no worse. Made by scripts/compare of tinyvmm.</p>'
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>A process, a container, a machine</title><style>{STYLE}</style></head><body>{''.join(parts)}{foot}</body></html>\n"
    )

"""docs/benchmarks.md and its plot, written from the outcomes that are kept beside them."""

import json
import math
from html import escape
from pathlib import Path

from .environment import ROOT
from .outcome import Outcome

PAGE = ROOT / "docs/benchmarks.md"
KEPT = ROOT / "docs/benchmarks/results.json"
PLOT = ROOT / "docs/benchmarks/goals.svg"


class PageError(Exception):
    """The page has no place for a section."""


def between(page, name, text):
    """The page with `text` between the markers of `name`."""
    begin, end = f"<!-- bench: begin {name} -->\n", f"<!-- bench: end {name} -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise PageError(f"the page has no markers for {name}; add {begin.strip()} and {end}")
    return head + begin + text.rstrip("\n") + "\n" + end + tail


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def section(outcome):
    """The generated text of a row."""
    parts = []
    for part in outcome.tables:
        parts.append(f"**{part.caption}**\n\n{table(part.head, part.rows)}")
    if outcome.remarks:
        parts.append("".join(f"- {remark}\n" for remark in outcome.remarks))
    where = "; ".join(f"{name}: {value}" for name, value in outcome.machine.items())
    parts.append(f"Measured {outcome.date} with `{outcome.command}`. {where}.\n")
    return "\n" + "\n".join(parts)


def summary(outcomes):
    """All goals in one table, with the plot."""
    rows = [
        [name, goal.what, goal.shown(), goal.wanted(), "yes" if goal.met() else "**no**"]
        for name, outcome in outcomes.items()
        for goal in outcome.goals
    ]
    head = ["row", "what", "reached", "goal", "met"]
    return "\n" + table(head, rows) + "\n![Each figure over its goal](benchmarks/goals.svg)\n"


def plot(outcomes):
    """Bars of every figure over its goal, on an axis of powers of ten, as SVG."""
    goals = [(f"{n}: {g.what}", g) for n, o in outcomes.items() for g in o.goals]
    line, left, width, top = 18, 380, 420, 26
    reach = max((abs(math.log10(max(g.share(), 1e-3))) for _, g in goals), default=0)
    reach = max(0.5, math.ceil(reach * 2) / 2)

    def x(share):
        position = math.log10(max(share, 1e-9)) / reach
        return left + width / 2 * (1 + min(1.0, max(-1.0, position)))

    height = top + line * len(goals) + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" '
        f'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{left}" y="14">figure over goal (right of the line: better than the goal)</text>',
    ]
    step = 0.5 if reach <= 1.5 else 1.0
    for k in range(-int(reach / step), int(reach / step) + 1):
        share = 10 ** (k * step)
        strong = ' stroke="#444444" stroke-width="1.5"' if k == 0 else ' stroke="#dddddd"'
        out.append(
            f'<line x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{top - 4}" y2="{height - 20}"{strong}/>'
            f'<text x="{x(share):.1f}" y="{height - 6}" text-anchor="middle" fill="#666666">{share:.2g}</text>'
        )
    for index, (what, goal) in enumerate(goals):
        y = top + line * index
        begin, end = sorted((x(1.0), x(goal.share())))
        colour = "#2f7d4f" if goal.met() else "#b3402a"
        out.append(
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(what)}</text>'
            f'<rect x="{begin:.1f}" y="{y + 2}" width="{max(end - begin, 1):.1f}" height="{line - 6}" '
            f'fill="{colour}"/>'
        )
        if goal.low is not None:
            low, high = sorted((x(goal.share(goal.low)), x(goal.share(goal.high))))
            out.append(
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8}" y2="{y + 8}" stroke="#000000"/>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


def kept():
    """The outcomes that were kept, by row."""
    if not KEPT.exists():
        return {}
    return {name: Outcome.from_json(value) for name, value in json.loads(KEPT.read_text()).items()}


def replace(path, text):
    """Writes the file so that it is never there in part."""
    temporary = Path(f"{path}.new")
    temporary.write_text(text)
    temporary.replace(path)


def write(outcomes, order):
    """Keeps the outcomes beside older ones of other rows and brings the page up to date."""
    found = kept() | outcomes
    everything = {name: found[name] for name in order if name in found}
    page = PAGE.read_text()
    for name, outcome in everything.items():
        page = between(page, name, section(outcome))
    page = between(page, "summary", summary(everything))
    KEPT.parent.mkdir(exist_ok=True)
    kept_text = json.dumps({n: o.to_json() for n, o in everything.items()}, indent=1) + "\n"
    for path, text in [(KEPT, kept_text), (PLOT, plot(everything)), (PAGE, page)]:
        replace(path, text)

"""Draws the curves of growth that scripts/bench measured; the panels come as JSON on standard
input, the argument is the SVG file."""

import json
import sys

import matplotlib

matplotlib.use("svg")
# Text stays text, and the same figures give the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "conceptseg", "font.size": 8})

import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)
import numpy as np  # noqa: E402

COLUMNS = 3
TIME, MEMORY = "#2f6db3", "#b3702a"


def widen(axes):
    """At least a power of ten, so that a flat line looks flat."""
    low, high = axes.get_ylim()
    spare = max(1.0, (10 / (high / low)) ** 0.5)
    axes.set_ylim(low / spare, high * spare)


def draw(axes, panel):
    sizes, seconds = np.array(panel["sizes"]), np.array(panel["seconds"])
    slope = panel["exponent"]
    fit = np.exp(np.log(seconds).mean() + slope * (np.log(sizes) - np.log(sizes).mean()))
    axes.loglog(sizes, seconds * 1e3, "o", color=TIME, markersize=3)
    axes.loglog(sizes, fit * 1e3, "-", color=TIME, linewidth=0.8)
    axes.set_title(f"{panel['stage']}: exponent {slope:.2f}", fontsize=8)
    axes.set_xlabel(panel["axis"])
    axes.set_ylabel("ms", color=TIME)
    axes.grid(True, linewidth=0.3)
    axes.minorticks_off()
    widen(axes)
    if panel["bytes"] and min(panel["bytes"]) > 0:
        other = axes.twinx()
        other.loglog(sizes, np.array(panel["bytes"]) / 2**20, "s--", color=MEMORY, markersize=2, linewidth=0.6)
        other.set_ylabel("MB", color=MEMORY)
        other.minorticks_off()
        widen(other)


def main():
    panels = json.load(sys.stdin)
    rows = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(9, 2.2 * rows), layout="constrained")
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels):
        draw(axes, panel)
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()

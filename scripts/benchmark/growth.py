"""How the cost of each stage of ours grows with what it is given."""

import json
import math
import subprocess
from dataclasses import dataclass, field
from datetime import date
from statistics import median

from . import page
from .contest import Contestant, Process, order
from .environment import PACKAGES, PYTHON, ROOT, SetupError, build, install, machine, note
from .outcome import Goal, Outcome, Table, mebibytes, seconds

DRAW = ROOT / "scripts/peers/growth.py"
FIGURE = ROOT / "docs/benchmarks/growth.svg"
KEPT = ROOT / "docs/benchmarks/growth.json"
HEIGHTS = [240, 360, 480, 720, 1080, 1440, 2160]
# An exponent of a measured line is never exactly 1.
LINEAR = 1.1


@dataclass
class Curve:
    """A stage under one option of `bench-stage sized`, over several of its values."""

    stage: str
    option: str
    values: list
    # Costs that are fitted against pixels must not grow faster than linearly.
    linear: bool = False
    # What the axis counts for a value.
    size: object = float
    axis: str = ""
    # Whether the memory on top of the inputs is shown too.
    memory: bool = False
    # Seconds of each run for each value, and bytes.
    taken: list = field(default_factory=list)
    bytes: list = field(default_factory=list)

    def name(self):
        return f"{self.stage}: {self.axis}"

    def arguments(self, value):
        words = [self.stage, f"--{self.option}", value]
        if self.option == "height":
            words += ["--width", width(value)]
        return words

    def sizes(self):
        return [self.size(value) for value in self.values]

    def costs(self):
        """Seconds for each value; of streams for all of them together."""
        return [median(runs) for runs in self.taken]


def width(height):
    """Of a frame of 16 to 9, even."""
    return round(height * 16 / 9 / 2) * 2


def pixels(height):
    return height * width(height)


def curves():
    frames = {"option": "height", "values": HEIGHTS, "size": pixels, "axis": "pixels of a frame"}
    return [
        *(Curve(stage, linear=True, memory=stage != "scores", **frames)
          for stage in ("preprocess", "concepts", "propagation", "scores")),
        Curve("propagation", "context", [1, 2, 4, 7, 10, 15, 20], axis="context frames", memory=True),
        Curve("propagation", "instances", [1, 2, 4, 8, 16, 32], axis="instances", memory=True),
        Curve("scores", "instances", [1, 2, 4, 8, 16, 32], axis="instances"),
        Curve("concepts", "concepts", [64, 128, 256, 512, 1024, 2048, 4096], axis="concepts"),
        Curve("concepts", "grid", [2, 3, 5, 8, 11, 15], size=lambda side: side * side, axis="clusters"),
        Curve("streams", "streams", [1, 2, 4, 8, 16, 32, 64], axis="streams", memory=True),
    ]


def exponent(sizes, costs):
    """Slope of the straight line through the logarithms (least squares): cost ~ size ^ slope."""
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle_x) ** 2 for a in x)


def measure(curve, stage, runs):
    """Runs the stage with all values in turns. Processes are kept until the last turn, so that a
    busy moment meets all values."""
    processes = []
    try:
        for value in curve.values:
            command = [stage, "sized", *curve.arguments(value)]
            processes.append(Process(Contestant(f"{curve.name()} {value}", command)))
        for process in processes:
            process.ask("run")
        curve.bytes = [p.memory()["VmRSS"] - p.before for p in processes]
        curve.taken = [[] for _ in processes]
        for turn in range(runs):
            for index in order(len(processes), turn):
                curve.taken[index].append(processes[index].ask("run")["seconds"])
    finally:
        for process in processes:
            process.close()


def outcome_of(measured):
    """The table of the exponents, and the bound on those that count pixels."""
    outcome, rows = Outcome(), []
    for curve in measured:
        sizes, costs = curve.sizes(), curve.costs()
        slope = exponent(sizes, costs)
        span = f"{sizes[0]:,.0f} to {sizes[-1]:,.0f}"
        memory = "–"
        if curve.memory:
            memory = f"{mebibytes(curve.bytes[0])} to {mebibytes(curve.bytes[-1])}"
        ends = f"{seconds(costs[0])} to {seconds(costs[-1])}"
        rows.append([curve.stage, curve.axis, span, ends, f"{slope:.2f}", memory])
        if curve.linear:
            what = f"exponent of {curve.stage} over pixels"
            outcome.goals.append(Goal(what, slope, LINEAR, False, ""))
    head = ["stage", "grows with", "from, to", "time of a run", "exponent", "memory on top of the inputs"]
    outcome.tables.append(Table("1 thread, at 854x480 where pixels do not grow", head, rows))
    for goal in outcome.goals:
        if not goal.met():
            outcome.remarks.append(f"**Worse than linear**: {goal.what} is {goal.value:.2f}.")
    return outcome


def panels(measured):
    """What the figure is drawn from."""
    out = []
    for curve in measured:
        sizes, costs = curve.sizes(), curve.costs()
        panel = {"stage": curve.stage, "axis": curve.axis, "sizes": sizes, "seconds": costs}
        panel["exponent"] = exponent(sizes, costs)
        panel["bytes"] = curve.bytes if curve.memory else None
        out.append(panel)
    return out


def draw(found, target):
    done = subprocess.run([PYTHON, DRAW, target], input=json.dumps(found), text=True)
    if done.returncode != 0:
        raise SetupError("the figure cannot be drawn; see above")


def grow(runs, quick, command):
    """Measures all curves and brings the page up to date; whether all could be kept linear."""
    install([package for package in PACKAGES if package.startswith("matplotlib")], note)
    stage = build("conceptseg-tests", "--bin", "bench-stage")["bench-stage"]
    measured = curves()
    where = machine()
    for curve in measured:
        if quick:
            curve.values = curve.values[:3]
        note(curve.name())
        measure(curve, stage, 2 if quick else runs or 5)
    outcome = outcome_of(measured)
    outcome.machine, outcome.command, outcome.date = where, command, str(date.today())
    text = page.section(outcome)
    print(text)
    if not quick:
        FIGURE.parent.mkdir(exist_ok=True)
        draw(panels(measured), FIGURE)
        page.replace(KEPT, json.dumps(panels(measured), indent=1) + "\n")
        picture = "\n![Time and memory over size](benchmarks/growth.svg)\n"
        page.replace(page.PAGE, page.between(page.PAGE.read_text(), "growth", text + picture))
    return all(goal.met() for goal in outcome.goals)

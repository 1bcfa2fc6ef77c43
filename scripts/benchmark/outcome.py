"""What a row of the comparison comes to: tables to read, and figures to hold against goals."""

from dataclasses import asdict, dataclass, field
from statistics import median

from . import figures

UNITS = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]


def seconds(value):
    """A time with three digits that count."""
    scale, unit = next((u for u in UNITS if value >= u[0]), UNITS[-1])
    return f"{value / scale:.3g} {unit}" if value / scale < 999.5 else f"{value / scale:.0f} {unit}"


def mebibytes(count):
    value = count / 2**20
    return f"{value:.0f} MB" if value >= 9.95 else f"{value:.1f} MB"


def times(ratio):
    """A ratio with its spread."""
    low, mid, high = (f"{ratio[k]:.3g}" for k in ("low", "median", "high"))
    return f"{mid} ({low} to {high})"


@dataclass
class Goal:
    """A figure and what it should be."""

    what: str
    value: float
    goal: float
    at_least: bool
    unit: str = "times"
    low: float | None = None
    high: float | None = None

    def share(self, value=None):
        """How the figure stands to its goal: 1 where it is just reached, more is better."""
        value = self.value if value is None else value
        return value / self.goal if self.at_least else self.goal / value

    def met(self):
        return self.share() >= 1

    def shown(self):
        spread = f" ({self.low:.3g} to {self.high:.3g})" if self.low is not None else ""
        return f"{self.value:.3g}{spread} {self.unit}"

    def wanted(self):
        return f"at {'least' if self.at_least else 'most'} {self.goal:g} {self.unit}"


@dataclass
class Table:
    caption: str
    head: list
    rows: list


@dataclass
class Outcome:
    """Everything about a row that is kept and shown."""

    tables: list = field(default_factory=list)
    goals: list = field(default_factory=list)
    remarks: list = field(default_factory=list)
    machine: dict = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, value):
        value = dict(value)
        value["tables"] = [Table(**table) for table in value["tables"]]
        value["goals"] = [Goal(**goal) for goal in value["goals"]]
        return cls(**value)


def compare(outcome, caption, results, memory=False):
    """Adds a group of contestants that did the same work: a table, and the goals of the peers
    against the fastest of ours."""
    ours = min((r for r in results if r.contestant.ours), key=lambda r: median(r.seconds))
    # Processes that end after one frame do not describe themselves.
    told = any(result.description for result in results)
    rows = []
    for result in results:
        contestant = result.contestant
        ratio = figures.ratios(result.seconds, ours.seconds)
        spread = [figures.quantile(result.seconds, share) for share in (0.1, 0.9)]
        row = [
            contestant.name,
            seconds(median(result.seconds)),
            " to ".join(map(seconds, spread)),
            "–" if result is ours else times(ratio),
        ]
        if memory:
            row.append(mebibytes(result.peak - result.before))
        rows.append(row + [result.description] * told)
        if contestant.goal is not None:
            what = f"{caption}: {contestant.name}"
            spread = (ratio["low"], ratio["high"])
            outcome.goals.append(Goal(what, ratio["median"], contestant.goal, True, "times", *spread))
    head = ["contestant", "median", "10 to 90 %", "times as long as the fastest of ours"]
    head += ["memory on top of the inputs"] * memory + ["what it is"] * told
    outcome.tables.append(Table(caption, head, rows))
    return ours

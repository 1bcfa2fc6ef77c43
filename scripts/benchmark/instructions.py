"""Instructions of the hot stages, counted by valgrind, against those that were kept.

A count hardly depends on what else the machine does, so that a slowdown is seen on a busy one. The
processor that valgrind shows has AVX2 but no AVX-512: what is counted is the way of AVX2.
"""

import re
import subprocess
import tomllib
from dataclasses import dataclass

from .contest import surroundings
from .environment import ROOT, SetupError, build, example_of_trainer, note, run
from .page import table

KEPT = ROOT / "scripts/benchmark/instructions.toml"
HEAD = """\
# Instructions of one run of each stage on made-up data, counted by callgrind (with AVX2). Written by
#
#     scripts/bench --check --update
#
# Another compiler gives other counts: run this before a change and after it with the same one.
"""
# Share by which a stage may grow.
TOLERANCE = 0.03
# Runs of the two processes whose difference counts; the first run of a process also makes buffers.
FEW, MORE = 1, 3
COLLECTED = re.compile(r"Collected : (\d+)")
SIZED = {
    "preprocess": ["preprocess"],
    "concepts": ["concepts"],
    # Smaller, because filling the context is counted too, and takes the longest.
    "propagation": ["propagation", "--height", 240, "--width", 428, "--context", 2],
    "J and F": ["scores"],
}
SEGMENTS = ["--scale", "300", "--sigma", "0.8", "--min-size", "400"]


@dataclass
class Verdict:
    """A stage, its counts, and whether it is as good as it was."""

    stage: str
    kept: int | None
    found: int
    fine: bool
    words: str

    def row(self):
        change = f"{self.found / self.kept - 1:+.1%}" if self.kept else "–"
        kept = f"{self.kept:,}" if self.kept else "–"
        return [self.stage, kept, f"{self.found:,}", change, self.words]


def judge(kept, found, tolerance=TOLERANCE):
    """Holds the counts that were found against those that were kept."""
    verdicts = []
    for stage, count in found.items():
        before = kept.get(stage)
        if before is None:
            fine, words = False, "**new**: keep it with --update"
        elif count > before * (1 + tolerance):
            fine, words = False, "**slower**"
        elif count < before * (1 - tolerance):
            fine, words = True, "faster: keep it with --update"
        else:
            fine, words = True, "as before"
        verdicts.append(Verdict(stage, before, count, fine, words))
    return verdicts


def read(path=KEPT):
    """The kept counts by stage, and the compiler that they are of."""
    if not path.exists():
        return {}, None
    try:
        kept = tomllib.loads(path.read_text())
        return {stage: int(count) for stage, count in kept["stages"].items()}, kept["compiler"]
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, ValueError, TypeError) as error:
        raise SetupError(f"{path} cannot be read: {error}; write it with --update") from error


def write(counts, compiler, path=KEPT):
    lines = [f'"{stage}" = {count}\n' for stage, count in counts.items()]
    path.write_text(f'{HEAD}compiler = "{compiler}"\n\n[stages]\n{"".join(lines)}')


def collected(command, runs):
    """Instructions of a contestant from its start to its end, with that many runs between."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *map(str, command)]
    try:
        done = subprocess.run(
            valgrind, input="run\n" * runs, capture_output=True, text=True, env=surroundings(1)
        )
    except FileNotFoundError as error:
        raise SetupError("valgrind is not installed; `apt install valgrind` brings it") from error
    counts = COLLECTED.search(done.stderr)
    if done.returncode != 0 or not counts:
        raise SetupError(f"`{' '.join(valgrind)}` failed:\n{done.stderr}")
    return int(counts[1])


def count(command):
    """Instructions of one run of a contestant, of all its threads."""
    return (collected(command, MORE) - collected(command, FEW)) // (MORE - FEW)


def commands(stage, segments, image):
    """The contestant of each stage; without the trainer's program all but the segments."""
    all_of_them = {name: [stage, "sized", *words] for name, words in SIZED.items()}
    if segments:
        all_of_them["segments"] = [segments, "--images", image, *SEGMENTS]
    return all_of_them


def check(work, update):
    """Counts, shows the table and keeps the counts if asked; whether no stage is slower."""
    kept, compiler_before = read()
    stage = build("conceptseg-tests", "--bin", "bench-stage")["bench-stage"]
    segments, image = example_of_trainer("bench_segments"), work / "frames/00000.jpg"
    if segments:
        run([stage, "pictures", "--count", 1, "--out", work], "the picture")
    found = {}
    for name, command in commands(stage, segments, image).items():
        note(f"counting {name}")
        found[name] = count(command)
    compiler = run(["rustc", "--version"], "rustc").strip()
    verdicts = judge(kept, found)
    head = ["stage", "instructions kept", "found", "change", "verdict"]
    print(table(head, [verdict.row() for verdict in verdicts]), end="")
    if compiler_before not in (None, compiler):
        print(f"The kept counts are those of {compiler_before}; this is {compiler}.")
    if update:
        # A stage that could not be counted here keeps its count.
        write(kept | found, compiler)
        return True
    return all(verdict.fine for verdict in verdicts)

"""The command line of scripts/bench."""

import argparse
import shlex
import sys
import tempfile
from datetime import date
from pathlib import Path

from . import growth, instructions, page
from .arrays import ArrayError
from .contest import ContestError
from .environment import (
    ROOT,
    SetupError,
    build,
    example_of_trainer,
    machine,
    make_peers,
    note,
    run,
    shared,
)
from .rows import FRAME_SIZE, NEED_TORCH, ROWS, SIZES, Setting

# Photographs that the segments row takes at most.
MAX_IMAGES = 6


def parser():
    out = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compares ConceptSeg with what others use, side by side, and writes "
        "docs/benchmarks.md, which says what each row measures.",
    )
    out.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    out.add_argument("--runs", type=int, help="runs of each contestant; each row has its own default")
    out.add_argument(
        "--quick", action="store_true", help="two runs, to see that all works; writes no page"
    )
    out.add_argument(
        "--with-torch", action="store_true", help="PyTorch too (a download of several GB)"
    )
    out.add_argument("--bundle", type=Path, default=ROOT / "models/starter", help="folder")
    out.add_argument(
        "--masks",
        type=Path,
        nargs=2,
        metavar=("ANNOTATIONS", "RESULTS"),
        help="folders with a folder of PNG masks for each sequence, for the row davis; without "
        "them the tests' data, or else a generated scene",
    )
    out.add_argument(
        "--images",
        type=Path,
        help="folder of JPEG files for the segments; without it the tests' data, or else a "
        "generated scene",
    )
    out.add_argument(
        "--growth",
        action="store_true",
        help="instead of the rows: how the cost of our stages grows with what they are given",
    )
    out.add_argument(
        "--check",
        action="store_true",
        help="instead of the rows: count the instructions of the hot stages (with valgrind), and "
        "fail where they are over 3 %% more than those that were kept",
    )
    out.add_argument(
        "--update", action="store_true", help="with --check: keep the counts that are found"
    )
    return out


def rows_of(args):
    """Names of the rows that are asked for, else of all that can be run."""
    return args.only or [name for name in ROWS if args.with_torch or name not in NEED_TORCH]


def images_of(folder):
    """Some images, evenly spread."""
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise SetupError(f"{folder} holds no .jpg files; give another folder with --images")
    count = min(MAX_IMAGES, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def masks_of(inputs):
    """Real annotations and results where the tests have them, else those of the scene."""
    davis = [shared("data/davis/Annotations/480p"), shared("data/davis/Results/osvos")]
    return davis if all(davis) else [inputs / "annotations", inputs / "results"]


def prepare(args, work):
    """Everything that the rows need."""
    names = rows_of(args)
    make_peers(args.with_torch, note)
    note("building the release profile")
    stage = build("conceptseg-tests", "--bin", "bench-stage")["bench-stage"]
    segments = example_of_trainer("bench_segments") if "segments" in names else None
    training_input = example_of_trainer("bench_input") if "training-input" in names else None
    note("making the inputs")
    inputs = work / "inputs"
    sizes = ",".join([*SIZES, FRAME_SIZE])
    run([stage, "prepare", "--bundle", args.bundle, "--out", inputs, "--sizes", sizes], "prepare")
    photographs = args.images or shared("data/bsds500/images") or inputs / "frames"
    return Setting(
        bundle=args.bundle.resolve(),
        inputs=inputs,
        work=work,
        stage=stage,
        runs=args.runs,
        quick=args.quick,
        with_torch=args.with_torch,
        masks=args.masks or masks_of(inputs),
        images=images_of(photographs),
        segments=segments,
        training_input=training_input,
        note=note,
    )


def spoken_command():
    return shlex.join(["scripts/bench", *sys.argv[1:]])


def compare(args):
    """Runs the rows; the outcomes of those that could be run, and whether all could."""
    outcomes, complete = {}, True
    where = machine()
    command = spoken_command()
    with tempfile.TemporaryDirectory(prefix="conceptseg-bench-") as folder:
        setting = prepare(args, Path(folder))
        for name in rows_of(args):
            setting.note = lambda text, name=name: note(f"{name}: {text}")
            try:
                outcome = ROWS[name](setting)
            except (ContestError, SetupError, ArrayError) as error:
                # The other rows can still be measured.
                print(f"\nbench: {name}: {error}", file=sys.stderr)
                complete = False
                continue
            outcome.machine, outcome.command, outcome.date = where, command, str(date.today())
            outcomes[name] = outcome
            print(f"\n## {name}\n{page.section(outcome)}", flush=True)
    return outcomes, complete


def main():
    arguments = parser()
    args = arguments.parse_args()
    if args.runs is not None and args.runs < 1:
        arguments.error("--runs is at least 1")
    if args.update and not args.check:
        arguments.error("--update goes with --check")
    try:
        if args.check:
            with tempfile.TemporaryDirectory(prefix="conceptseg-bench-") as folder:
                return 0 if instructions.check(Path(folder), args.update) else 1
        if args.growth:
            return 0 if growth.grow(args.runs, args.quick, spoken_command()) else 1
        outcomes, complete = compare(args)
        if outcomes:
            print(page.summary(outcomes))
        if outcomes and not args.quick:
            page.write(outcomes, list(ROWS))
    except (SetupError, ContestError, page.PageError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0 if complete else 1

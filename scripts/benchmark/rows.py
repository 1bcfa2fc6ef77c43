"""The rows of the comparison. A new row is a function that takes a `Setting` and returns an
`Outcome`, an entry in `ROWS`, and a section with its markers in docs/benchmarks.md."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from . import arrays, figures
from .contest import Contestant, ContestError, Process, started_in_turns, timed_in_turns
from .environment import PYTHON, ROOT, run
from .outcome import Goal, Outcome, Table, compare, mebibytes, seconds, times

PEERS = ROOT / "scripts/peers"
# The size of the edge network's input, and that at which whole frames of 480x854 enter it.
SIZES = ["240x432", "480x854"]
FRAME_SIZE = "480x832"
# 32-bit networks differ in the order of their sums.
EMBEDDING_TOLERANCE = 1e-3
# Labels may differ where two scores are equal to the last bits.
LABEL_AGREEMENT = 0.9999
# The frame is resized by Pillow there and by ours here, which differ by rounding.
COLD_AGREEMENT = 0.99
FIGURE_TOLERANCE = 1e-9
NO_TRAINER = "the trainer needs libtorch; run scripts/setup-libtorch, or choose other rows with --only"
# As the recipe of the edge preset has it.
TRAINING = ["--batch", 8, "--crop", 160, "--short-side", 240]
TRAINING_IMAGES = 48
# Augmentations are random: of as many values the mean and the spread are alike.
RANDOM_TOLERANCE = 0.4
SEGMENTS = ["--scale", "300", "--sigma", "0.8", "--min-size", "400"]


@dataclass
class Setting:
    """What every row is given."""

    bundle: Path
    inputs: Path
    work: Path
    stage: Path
    runs: int | None
    quick: bool
    with_torch: bool
    # Folders of annotations and of results, each with a folder for each sequence.
    masks: tuple
    images: list
    segments: Path | None
    training_input: Path | None
    note: object

    def count(self, usual):
        """Runs of each contestant, where `usual` is right for a quiet machine."""
        return 2 if self.quick else self.runs or usual

    def ours(self, *arguments):
        return [self.stage, *arguments]

    def peer(self, script, *arguments):
        return [PYTHON, PEERS / script, *arguments]

    def backends(self):
        """Names of the backends that are there, as the probe finds them."""
        return [found["name"] for found in json.loads(run([self.stage, "backends"], "the probe"))]

    def network(self, backend, threads):
        return ["--bundle", self.bundle, "--backend", backend, "--threads", threads]


def thread_counts():
    """One thread, and all."""
    return sorted({1, os.cpu_count() or 1})


def spoken(threads):
    return f"{threads} thread" + "s" * (threads != 1)


def results_of(setting, processes):
    """Lets every contestant write its result; the files."""
    files = []
    for index, process in enumerate(processes):
        files.append(setting.work / f"result-{index}.npy")
        process.ask(f"check {files[-1]}")
    return files


def check_labels(setting, outcome, least=LABEL_AGREEMENT):
    """A check that all contestants have the labels of the first one."""

    def check(processes):
        files = results_of(setting, processes)
        for process, file in zip(processes[1:], files[1:]):
            share = arrays.agreement(files[0], file)
            name = process.contestant.name
            if share < least:
                raise ContestError(f"{name} agrees with ours in {share:.4%} of the labels only")
            remark = f"{name} gives the same labels as ours in {share:.4%} of the pixels."
            if remark not in outcome.remarks:
                outcome.remarks.append(remark)

    return check


def check_values(setting, outcome, tolerance, what):
    """A check that all contestants have the values of the first one. Those that compute in a lower
    precision on purpose are reported, not refused."""

    def check(processes):
        files = results_of(setting, processes)
        for process, file in zip(processes[1:], files[1:]):
            name = process.contestant.name
            distance = arrays.distance(files[0], file)
            exact = process.contestant.goal is not None or process.contestant.ours
            if exact and distance > tolerance:
                raise ContestError(f"{name} differs from ours by {distance:g} in {what}")
            outcome.remarks.append(f"{name}: {what} differ from ours by at most {distance:.2g}.")

    return check


def network(setting):
    """The network alone: ours with every backend, onnxruntime and OpenVINO from Python."""
    outcome = Outcome()
    for size in SIZES:
        image = ["--input", setting.inputs / f"input-{size}.npy"]
        for threads in (1, 2):
            caption = f"{size}, {spoken(threads)}"
            few = ["--bundle", setting.bundle, *image, "--threads", threads]
            contestants = [
                Contestant(
                    f"ours, {backend}",
                    setting.ours("network", *setting.network(backend, threads), *image),
                    threads,
                    ours=True,
                )
                for backend in setting.backends()
            ]
            contestants += [
                Contestant(
                    "onnxruntime, Python",
                    setting.peer("network_onnxruntime.py", *few),
                    threads,
                    goal=1.0,
                ),
                Contestant(
                    "OpenVINO, Python, f32",
                    setting.peer("network_openvino.py", *few, "--precision", "f32"),
                    threads,
                    goal=1.0,
                ),
                Contestant(
                    "OpenVINO, Python, its default",
                    setting.peer("network_openvino.py", *few, "--precision", "default"),
                    threads,
                ),
            ]
            check = check_values(setting, outcome, EMBEDDING_TOLERANCE, f"embeddings at {caption}")
            runs = setting.count(25)
            compare(outcome, caption, timed_in_turns(contestants, runs, check, setting.note))
    return outcome


def frame(setting):
    """A whole frame, from JPEG to metadata, over the network alone."""
    outcome = Outcome()
    image = ["--input", setting.inputs / f"input-{FRAME_SIZE}.npy"]
    for threads in thread_counts():
        for backend in setting.backends():
            caption = f"{backend}, {spoken(threads)}"
            of_ours = setting.network(backend, threads)
            contestants = [
                Contestant(
                    "whole frame",
                    setting.ours("frame", *of_ours, "--inputs", setting.inputs),
                    threads,
                ),
                Contestant(
                    "network alone", setting.ours("network", *of_ours, *image), threads, ours=True
                ),
            ]
            whole, alone = timed_in_turns(
                contestants, setting.count(31), lambda _: None, setting.note
            )
            ratio = figures.ratios(whole.seconds, alone.seconds)
            parts = {
                name: median(answer[name] for answer in whole.parts) for name in whole.parts[0]
            }
            rows = [["whole frame", seconds(median(whole.seconds)), times(ratio)]]
            rows.append(["network alone", seconds(median(alone.seconds)), "1"])
            rows += [
                [f"in the frame: {name}", seconds(value), f"{value / median(alone.seconds):.2g}"]
                for name, value in parts.items()
            ]
            head = ["what", "median", "times the network alone"]
            outcome.tables.append(Table(caption, head, rows))
            spread = (ratio["low"], ratio["high"])
            goal = Goal(caption, ratio["median"], 1.10, False, "times the network alone", *spread)
            outcome.goals.append(goal)
    return outcome


def propagation(setting):
    """Mask propagation on given embeddings, and the memory that it takes."""
    outcome = Outcome()
    inputs = ["--inputs", setting.inputs]
    for threads in thread_counts():
        contestants = [
            Contestant("ours", setting.ours("propagation", *inputs), threads, ours=True),
        ]
        ways = [("numpy", "NumPy, windowed", 5.0)]
        ways += [("torch", "PyTorch, dense", 20.0)] * setting.with_torch
        for way, name, goal in ways:
            command = setting.peer("propagation_run.py", *inputs, "--way", way)
            contestants.append(
                Contestant(name, [*command, "--threads", threads], threads, goal=goal)
            )
        check = check_labels(setting, outcome)
        results = timed_in_turns(contestants, setting.count(15), check, setting.note)
        ours = compare(outcome, spoken(threads), results, memory=True)
        for result in results:
            if result.contestant.name == "PyTorch, dense":
                ratio = (result.peak - result.before) / max(ours.peak - ours.before, 1)
                what = f"{spoken(threads)}: peak memory of {result.contestant.name}"
                outcome.goals.append(Goal(what, ratio, 50.0, True))
    return outcome


def concepts(setting):
    """Clustering, codebook, upsampling and merging on given embeddings."""
    outcome = Outcome()
    inputs = ["--inputs", setting.inputs]
    for threads in thread_counts():
        contestants = [
            Contestant("ours", setting.ours("concepts", *inputs), threads, ours=True),
            Contestant(
                "NumPy, fastest found",
                setting.peer("concepts.py", *inputs, "--way", "numpy"),
                threads,
                goal=15.0,
            ),
            Contestant(
                "scikit-learn, SciPy, scikit-image",
                setting.peer("concepts.py", *inputs, "--way", "libraries"),
                threads,
                goal=15.0,
            ),
        ]
        check = check_labels(setting, outcome)
        results = timed_in_turns(contestants, setting.count(25), check, setting.note)
        compare(outcome, spoken(threads), results)
    return outcome


def sequences(annotations, results):
    """Names of the sequences that have annotations and results."""
    try:
        names = sorted(
            folder.name
            for folder in results.iterdir()
            if any(folder.glob("*.png")) and (annotations / folder.name).is_dir()
        )
    except OSError as error:
        raise ContestError(f"{results} cannot be listed: {error}; give another folder") from error
    if not names:
        raise ContestError(f"no sequence of {results} has annotations in {annotations}")
    return names


def davis(setting):
    """J and F of a folder of results."""
    outcome = Outcome()
    annotations, results = setting.masks
    names = sequences(annotations, results)[: 1 if setting.quick else None]
    outcome.remarks.append(f"Scored: {', '.join(names)}.")
    of_both = ["--annotations", annotations, "--results", results, "--sequences", ",".join(names)]
    for threads in thread_counts():
        contestants = [
            Contestant("ours", setting.ours("davis", *of_both), threads, ours=True),
            Contestant(
                "Python, as the official evaluation",
                setting.peer("davis.py", *of_both, "--threads", threads),
                threads,
                goal=50.0,
            ),
        ]
        check = check_values(
            setting, outcome, FIGURE_TOLERANCE, f"J and F with {spoken(threads)}"
        )
        compare(
            outcome,
            spoken(threads),
            timed_in_turns(contestants, setting.count(3), check, setting.note),
        )
    return outcome


def segments(setting):
    """Pseudo segments by the method of Felzenszwalb and Huttenlocher."""
    if setting.segments is None:
        raise ContestError(NO_TRAINER)
    outcome = Outcome()
    images = ["--images", ",".join(map(str, setting.images)), *SEGMENTS]
    contestants = [
        Contestant("ours", [setting.segments, *images], ours=True),
        Contestant("scikit-image", setting.peer("segments.py", *images), goal=2.0),
    ]
    check = check_labels(setting, outcome)
    results = timed_in_turns(contestants, setting.count(9), check, setting.note)
    compare(outcome, f"{len(setting.images)} images, 1 thread", results)
    return outcome


def cold_start(setting):
    """From the start of a process to the first labelled frame."""
    outcome = Outcome()
    threads = os.cpu_count() or 1
    image = ["--image", setting.inputs / "frame.png"]
    contestants = [
        Contestant(
            f"ours, {backend}",
            setting.ours("once", *setting.network(backend, threads), *image),
            threads,
            ours=True,
        )
        for backend in setting.backends()
    ]
    few = ["--bundle", setting.bundle, "--threads", threads]
    contestants.append(
        Contestant(
            "Python with onnxruntime", setting.peer("once.py", *few, *image), threads, goal=5.0
        )
    )
    files = [setting.work / f"once-{index}.npy" for index in range(len(contestants))]
    for contestant, file in zip(contestants, files):
        run([*contestant.command, "--out", file], contestant.name)
    for contestant, file in zip(contestants[1:], files[1:]):
        share = arrays.agreement(files[0], file)
        if share < COLD_AGREEMENT:
            raise ContestError(f"{contestant.name} agrees with ours in {share:.2%} of the labels only")
        outcome.remarks.append(f"{contestant.name} labels {share:.2%} of the pixels as the first does.")
    results = started_in_turns(contestants, setting.count(15), setting.note)
    compare(outcome, spoken(threads), results)
    return outcome


def memory(setting):
    """Resident memory of one stream, and of each further one."""
    outcome = Outcome()
    threads, further = os.cpu_count() or 1, 2 if setting.quick else 8
    inputs = ["--inputs", setting.inputs]
    contestants = [
        Contestant(
            f"ours, {backend}",
            setting.ours("streams", *setting.network(backend, threads), *inputs),
            threads,
            ours=True,
        )
        for backend in setting.backends()
    ]
    few = ["--bundle", setting.bundle, "--threads", threads]
    contestants.append(Contestant("Python", setting.peer("streams.py", *few, *inputs), threads))
    rows = []
    for contestant in contestants:
        setting.note(contestant.name)
        with Process(contestant) as process:
            process.ask("grow 1")
            one = process.memory()["VmRSS"]
            process.ask(f"grow {1 + further}")
            each = (process.memory()["VmRSS"] - one) / further
            most = process.memory()["VmHWM"]
            rows.append([contestant.name, *map(mebibytes, (one, each, most)), process.description])
        if contestant.ours:
            name = contestant.name
            outcome.goals.append(Goal(f"{name}: one stream", one / 1e6, 250.0, False, "MB"))
            goal = Goal(f"{name}: each further stream", each / 1e6, 20.0, False, "MB")
            outcome.goals.append(goal)
    head = ["process", "one stream", "each further", "peak", "what it is"]
    outcome.tables.append(Table(f"{1 + further} streams, {spoken(threads)}", head, rows))
    return outcome


def training_input(setting):
    """From JPEG files to batches of augmented views with pseudo segments."""
    if setting.training_input is None:
        raise ContestError(NO_TRAINER)
    outcome = Outcome()
    # More of the photographs than the segments need: a batch has each image once.
    files = sorted(setting.images[0].parent.glob("*.jpg"))[:TRAINING_IMAGES]
    for threads in thread_counts():
        of_both = ["--images", ",".join(map(str, files)), *TRAINING, "--threads", threads]
        of_both += ["--batches", threads * (2 if setting.quick else 4)]
        peer = setting.peer("training_input.py", *of_both)
        contestants = [
            Contestant("ours", [setting.training_input, *of_both], threads, ours=True),
            Contestant("Python, pool of processes", peer, threads, goal=3.0),
        ]
        if setting.with_torch:
            command = [*peer, "--way", "torch"]
            contestants.append(Contestant("PyTorch DataLoader", command, threads, goal=3.0))
        what = f"number, mean and standard deviation of the values with {spoken(threads)}"
        check = check_values(setting, outcome, RANDOM_TOLERANCE, what)
        results = timed_in_turns(contestants, setting.count(7), check, setting.note)
        compare(outcome, spoken(threads), results)
    return outcome


def training_step(setting):
    """One step of training, beside PyTorch's, by train/benchmarks/step_time.py."""
    if not setting.with_torch:
        raise ContestError("PyTorch is the peer; give --with-torch, or choose other rows with --only")
    outcome = Outcome()
    for threads in thread_counts():
        file = setting.work / f"steps-{threads}.json"
        rounds, steps = (1, 1) if setting.quick else (setting.runs or 5, 8)
        command = [PYTHON, ROOT / "train/benchmarks/step_time.py", "--threads", threads]
        command += ["--rounds", rounds, "--steps", steps, "--json", file]
        setting.note(f"{spoken(threads)}, {rounds} rounds of {steps} steps")
        run(command, "step_time.py")
        found = json.loads(file.read_text())
        ours, theirs = found["phases"]
        rows = [
            [phase, seconds(ours[phase]), seconds(theirs[phase]), f"{theirs[phase] / ours[phase]:.2f}"]
            for phase in ours
        ]
        low, high = (figures.quantile(found["ratios"], share) for share in (0.1, 0.9))
        ratio = {"median": median(found["ratios"]), "low": low, "high": high}
        rows.append(["step", *map(seconds, found["steps"]), times(ratio)])
        head = ["phase", "ours", "PyTorch", "times as long as ours"]
        outcome.tables.append(Table(spoken(threads), head, rows))
        what = f"{spoken(threads)}: PyTorch eager"
        outcome.goals.append(Goal(what, ratio["median"], 1.0, True, "times", low, high))
    outcome.remarks.append("Losses of the first steps agree to 1e-4; the others are timed.")
    return outcome


ROWS = {
    "network": network,
    "frame": frame,
    "propagation": propagation,
    "concepts": concepts,
    "davis": davis,
    "segments": segments,
    "training-input": training_input,
    "training-step": training_step,
    "cold-start": cold_start,
    "memory": memory,
}

# Rows that are left out without PyTorch unless they are asked for.
NEED_TORCH = {"training-step"}

"""Times the training step of ConceptSeg beside the same step in plain PyTorch.

    python train/benchmarks/step_time.py [--config RECIPE] [--rounds N] [--steps N] [--threads N]
        [--device cpu|cuda] [--batch N] [--crop N] [--json FILE]

Builds and runs `train/examples/step_time.rs` and `eager.py` in turn, with as many threads each,
from the same weights on the same random batches; eager.py ends where its losses differ. Prints
median seconds of the phases of a step with their shares, and how many times as long PyTorch takes
(the median over the rounds, and the smallest and largest of a round). Reading images is in
neither; in a training run it is the tag seconds/input of the log. On CUDA the time of a phase
lands where the program next waits for a value, so that only the whole step can be compared.

The python that runs this needs torch and safetensors; with the version of torch whose libtorch the
trainer is linked against, both sides have the same kernels. CONCEPTSEG_PROFILE=dev takes the
development build.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PHASES = ["forward", "loss", "backward", "update"]


def build():
    """Builds the example and returns its path."""
    profile = os.environ.get("CONCEPTSEG_PROFILE", "release")
    command = ["cargo", "build", "--profile", profile, "-p", "conceptseg-train"]
    command += ["--example", "step_time", "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("step_time: the example does not build; see above")
    messages = map(json.loads, done.stdout.splitlines())
    found = [m["executable"] for m in messages if m.get("target", {}).get("name") == "step_time"]
    return found[-1]


def run(command, threads):
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    command = [str(word) for word in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"step_time: `{' '.join(command)}` failed; see above")
    return json.loads(done.stdout)


def step_seconds(result):
    """Median seconds of a whole step."""
    return median(map(sum, zip(*(result["seconds"][phase] for phase in PHASES))))


def phase_seconds(results):
    """Median seconds of every phase over the steps of all rounds."""
    return {
        phase: median(second for result in results for second in result["seconds"][phase])
        for phase in PHASES
    }


def main():
    parser = argparse.ArgumentParser(description="The training step beside plain PyTorch's.")
    parser.add_argument("--config", default=ROOT / "configs/edge-mobilenetv2.toml", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="timed steps in a round")
    parser.add_argument("--checked", type=int, default=4, help="steps before them, compared")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help="images, instead of the recipe's")
    parser.add_argument("--crop", type=int, help="side of a view, instead of the recipe's")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.threads) < 1 or args.checked < 0:
        parser.error("rounds, steps and threads are at least 1, checked at least 0")

    common = ["--steps", args.steps, "--device", args.device]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.safetensors"
        ours = [build(), "--config", args.config, "--checked", args.checked, "--out", file]
        for option in ("batch", "crop"):
            if getattr(args, option) is not None:
                ours += [f"--{option}", getattr(args, option)]
        theirs = [sys.executable, Path(__file__).with_name("eager.py"), file]
        rounds = []
        for number in range(args.rounds):
            pair = run(ours + common, args.threads), run(theirs + common, args.threads)
            rounds.append(pair)
            a, b = map(step_seconds, pair)
            text = f"round {number + 1}: conceptseg {a:.3f} s, PyTorch {b:.3f} s a step"
            print(text, file=sys.stderr)

    sides = [phase_seconds(side) for side in zip(*rounds)]
    sums = [sum(side.values()) for side in sides]
    ratios = [step_seconds(b) / step_seconds(a) for a, b in rounds]
    whole = [median(map(step_seconds, side)) for side in zip(*rounds)]
    print(f"{'':10}{'conceptseg':>18}{'PyTorch ' + rounds[0][1]['torch']:>22}{'ratio':>8}")
    for phase in PHASES:
        cells = [f"{s[phase]:.4f} s {s[phase] / t:>5.0%}" for s, t in zip(sides, sums)]
        ratio = sides[1][phase] / sides[0][phase]
        print(f"{phase:10}{cells[0]:>18}{cells[1]:>22}{ratio:>8.2f}")
    cells = [f"{s:.4f} s      " for s in whole]
    print(f"{'step':10}{cells[0]:>18}{cells[1]:>22}{median(ratios):>8.2f}", end="")
    print(f"  ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)")
    apart = [
        f"{key} {max(b['differences'][key] for _, b in rounds):.1e}"
        for key in ("losses", "gradient", "weights")
    ]
    print(f"relative differences over {args.checked} compared steps: {', '.join(apart)}")
    if args.json:
        figures = {"phases": sides, "steps": whole, "ratios": ratios, "rounds": rounds}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Mask propagation as a contestant."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from propagation import Dense, Windowed
from serve import serve

# Steps from the start whose masks are compared; the context is full by then.
CHECKED = 12


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--way", choices=["numpy", "torch"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    description = f"NumPy {np.__version__}"
    if args.way == "torch":
        import torch

        torch.set_num_threads(args.threads)
        description = f"PyTorch {torch.__version__}"
    maps = np.load(args.inputs / "embeddings.npy")
    mask = np.asarray(Image.open(args.inputs / "mask.png"))
    # Nothing exists before the first check, so that all that is needed shows as memory on top of
    # the inputs.
    state = {"tracker": None, "steps": 0}

    def begin():
        state["tracker"] = (Windowed if args.way == "numpy" else Dense)(maps[0], mask)
        state["steps"] = 0

    def step():
        state["steps"] += 1
        return state["tracker"].step(maps[state["steps"] % len(maps)])

    def check():
        begin()
        for _ in range(CHECKED):
            result = step()
        return result

    serve(description, step, check)


if __name__ == "__main__":
    main()

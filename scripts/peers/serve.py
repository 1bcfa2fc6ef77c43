"""How a contestant talks with scripts/bench; the other side is tests/src/bench/mod.rs."""

import json
import sys
import time

import numpy as np


def answer(value):
    print(json.dumps(value), flush=True)


def serve(description, run, check=None, grow=None):
    """Answers standard input until its end. `run` does the stage once, `check` returns its result
    as an array, `grow` goes on with that many streams."""
    answer({"ready": description})
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "run":
            begun = time.perf_counter()
            run()
            answer({"seconds": time.perf_counter() - begun, "parts": {}})
        elif word == "check" and check:
            result = np.ascontiguousarray(check())
            # With an open file NumPy adds no ending to the name.
            with open(rest, "wb") as file:
                np.save(file, result)
            answer({"written": rest})
        elif word == "grow" and grow:
            grow(int(rest))
            answer({"streams": int(rest)})
        else:
            sys.exit(f"{line!r} is not understood")


def in_order(labels):
    """Labels renumbered from 0 in raster order of their first pixel."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].reshape(labels.shape)

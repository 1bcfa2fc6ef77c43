"""Makes coco_masks.json: polygons and run lengths with the masks that pycocotools makes of them.

    pip install numpy pycocotools
    python make_coco_masks.py [CASES [FILE]]

One case a line: what kind it is, height and width, the segmentation as an annotation file would
hold it, and the compressed run lengths of the mask (its parts merged).
"""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

KINDS = [
    "star", "crossing", "outside", "tiny", "thin", "collinear", "repeated", "halves", "parts",
    "ellipse", "far", "exact", "plain_runs", "text_runs", "empty_runs",
]


def points(rng, count, x, y):
    return [[rng.uniform(*x), rng.uniform(*y)] for _ in range(count)]


def polygons(kind, rng, w, h):
    """Parts of one kind, each a list of corners."""
    cx, cy = rng.uniform(0, w), rng.uniform(0, h)
    if kind == "star":  # concave around a centre
        n = rng.randrange(3, 30)
        angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(n))
        radii = [rng.uniform(0.1, 0.7) * min(w, h) for _ in range(n)]
        return [[[cx + r * math.cos(a), cy + r * math.sin(a)] for a, r in zip(angles, radii)]]
    if kind == "crossing":
        return [points(rng, rng.randrange(4, 20), (0, w), (0, h))]
    if kind == "outside":
        return [points(rng, rng.randrange(3, 12), (-w, 2 * w), (-h, 2 * h))]
    if kind == "tiny":  # smaller than a pixel, often covering nothing
        return [points(rng, rng.randrange(3, 6), (cx, cx + 0.9), (cy, cy + 0.9))]
    if kind == "thin":
        width = rng.uniform(0, 0.6)
        a, b = points(rng, 2, (-2, w + 2), (-2, h + 2))
        return [[a, b, [b[0] + width, b[1] + width], [a[0] + width, a[1] + width]]]
    if kind == "collinear":
        a, b = points(rng, 2, (0, w), (0, h))
        line = [rng.uniform(0, 1) for _ in range(rng.randrange(3, 6))]
        return [[[a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])] for t in line]]
    if kind == "repeated":  # corners twice in a row; one place only, now and then
        once = points(rng, rng.randrange(1, 6), (-1, w + 1), (-1, h + 1))
        twice = [p for p in once for _ in range(rng.randrange(1, 4))]
        return [twice + [once[0]] * max(0, 3 - len(twice))]
    if kind == "halves":  # on and around the middles and borders of pixels
        steps = [0, 0.1, 0.3, 0.5, 0.7, 0.9]
        corner = lambda side: rng.randrange(-1, side + 1) + rng.choice(steps)
        return [[[corner(w), corner(h)] for _ in range(rng.randrange(3, 8))]]
    if kind == "parts":  # that overlap or not
        count = rng.randrange(2, 5)
        return [part for _ in range(count) for part in polygons(rng.choice(KINDS[:8]), rng, w, h)]
    if kind == "ellipse":
        n, a, b = rng.randrange(8, 60), rng.uniform(1, w), rng.uniform(1, h)
        turn = [2 * math.pi * i / n for i in range(n)]
        return [[[cx + a * math.cos(t), cy + b * math.sin(t)] for t in turn]]
    if kind == "far":
        return [points(rng, rng.randrange(3, 6), (-9000, 9000), (-9000, 9000))]
    if kind == "exact":  # whole numbers
        return [[[rng.randrange(-1, w + 2), rng.randrange(-1, h + 2)] for _ in range(5)]]
    raise ValueError(kind)


def main():
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 750
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "coco_masks.json"
    rng = random.Random(7)
    lines = []
    for case in range(cases):
        kind = KINDS[case % len(KINDS)]
        w, h = rng.randrange(1, 90), rng.randrange(1, 90)
        if kind.endswith("_runs"):
            values = np.zeros((h, w), dtype=np.uint8)
            if kind != "empty_runs":
                for _ in range(rng.randrange(1, 6)):
                    x, y = rng.randrange(w), rng.randrange(h)
                    values[y : y + rng.randrange(1, h + 1), x : x + rng.randrange(1, w + 1)] ^= 1
            rle = mask_utils.encode(np.asfortranarray(values))
            counts = rle["counts"].decode()
            if kind == "text_runs":
                segmentation = {"size": [h, w], "counts": counts}
            else:
                flat = values.flatten(order="F")
                turns = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), w * h]
                runs = [b - a for a, b in zip(turns, turns[1:])]
                segmentation = {"size": [h, w], "counts": [0] * int(flat[0]) + runs}
                assert mask_utils.frPyObjects(segmentation, h, w)["counts"].decode() == counts
        else:
            digits = rng.choice([1, 2, 2, 2, 14])
            segmentation = [
                [round(value, digits) for corner in part for value in corner]
                for part in polygons(kind, rng, w, h)
            ]
            rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, h, w))
            counts = rle["counts"].decode()
        entry = {"kind": kind, "size": [h, w], "segmentation": segmentation, "mask": counts}
        lines.append(json.dumps(entry, separators=(",", ":")))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

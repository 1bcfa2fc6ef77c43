"""J and F as the official evaluation of DAVIS 2017 computes them, with NumPy and OpenCV.

From the description: objects are the ids up to the highest of the first annotation, void is
background, the first and the last frame are not scored; DAVIS 2016 has one object, white on
black. A boundary pixel differs from its neighbour to the east, south or south-east. A boundary
pixel is matched where the other boundary lies within ceil(0.008 times the diagonal), found by
dilating that with a disk.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from serve import serve

TOLERANCE = 0.008
VOID = 255


def read(folder):
    """All masks of a sequence, by name."""
    return {file.name: np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def boundary(mask):
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1])
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def disk(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def contour_accuracy(annotation, prediction):
    height, width = annotation.shape
    near = disk(int(np.ceil(TOLERANCE * np.linalg.norm((height, width)))))
    a, p = boundary(annotation), boundary(prediction)
    around_a = cv2.dilate(a.astype(np.uint8), near).astype(bool)
    around_p = cv2.dilate(p.astype(np.uint8), near).astype(bool)
    of_a, of_p = a.sum(), p.sum()
    if of_a == 0 or of_p == 0:
        return 1.0 if of_a == of_p else 0.0
    precision, recall = (p & around_a).sum() / of_p, (a & around_p).sum() / of_a
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def region_similarity(annotation, prediction):
    union = (annotation | prediction).sum()
    return 1.0 if union == 0 else (annotation & prediction).sum() / union


def score(annotations, results):
    """J and F of a sequence, object by object, frame by frame."""
    truth, found = read(annotations), read(results)
    names = list(truth)
    first = truth[names[0]]
    whole = set(np.unique(first)) == {0, VOID}
    objects = 1 if whole else int(np.where(first == VOID, 0, first).max())
    figures = []
    for instance in range(1, objects + 1):
        for name in names[1:-1]:
            annotation, prediction = truth[name], found[name]
            if whole:
                annotation, prediction = annotation > 127, (prediction == 1) | (prediction == VOID)
            else:
                annotation, prediction = annotation == instance, prediction == instance
            j = region_similarity(annotation, prediction)
            figures.append((j, contour_accuracy(annotation, prediction)))
    return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sequences", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(args.threads)
    names = args.sequences.split(",")

    def run():
        return [
            figure
            for name in names
            for figure in score(args.annotations / name, args.results / name)
        ]

    serve(f"NumPy {np.__version__}, OpenCV {cv2.__version__}", run, lambda: np.array(run()))


if __name__ == "__main__":
    main()

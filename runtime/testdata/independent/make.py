#!/usr/bin/env python3
"""Writes what independent Python code makes of generated data, for the tests to compare with.

kmeans.bin    labels after 1, 2, 10 and 50 rounds of spherical k-means on a 42x56 map of 32
              dimensions. Two implementations must agree before anything is written: plain numpy,
              and scikit-learn. scikit-learn's KMeans minimises Euclidean distances to means that are
              not scaled to unit length, which is another problem; but among *unit* centroids the
              nearest one is that of the highest dot product, and the direction of the mean of unit
              vectors is that of their sum. So KMeans is given the unit centroids as `init` for one
              iteration at a time, and its new centroids are scaled to unit length in between. That is
              equal on any data without empty clusters.
separated.bin labels on well separated data, where KMeans runs freely to its end from the same
              start: means of tight groups nearly have unit length, so that both problems have one
              solution. The script makes sure that they do and that more than the start is found.
knn.bin       the 15 nearest of 4000 prototypes by cosine for 200 queries (NearestNeighbors, brute
              force), then the class of each by an equal vote (KNeighborsClassifier).
miou.json     counts and figures of 21 classes (confusion_matrix, jaccard_score, accuracy_score).
purity.json   segments (scikit-image, 4-connected) of concept maps and their purity.

The data comes from a generator of whole numbers that the tests repeat, so that both sides have the
same values; what is written is small. Where a rounding error could decide (two scores within the
margin below), the script stops: choose another seed then.

Needs: numpy, scikit-learn, scikit-image. Takes a quarter of a minute.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from skimage.measure import label
from sklearn.cluster import KMeans
from sklearn.metrics import (
    accuracy_score, confusion_matrix, jaccard_score, pairwise_distances_argmin,
)
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

HERE = Path(__file__).parent
# Several times what a sum of 34 products of 32-bit floats may be wrong by.
MARGIN = 3e-6


class Numbers:
    """The linear congruential generator of the tests: 24 bits at a time."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def draw(self, count: int) -> np.ndarray:
        out = np.empty(count, dtype=np.int64)
        state = self.state
        for i in range(count):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            out[i] = state >> 40
        self.state = state
        return out

    def signed(self, count: int) -> np.ndarray:
        """Whole numbers from -128 to 127."""
        return (self.draw(count) >> 16) - 128

    def below(self, count: int, limit: int) -> np.ndarray:
        return self.draw(count) % limit


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def regions(numbers: Numbers, height: int, width: int, dim: int, count: int, signal: int):
    """A map of `count` kinds in blocks of 7x7 cells: `signal` times the kind's direction, and noise."""
    directions = numbers.signed(count * dim).reshape(count, dim)
    rows, columns = -(-height // 7), -(-width // 7)
    kinds = numbers.below(rows * columns, count).reshape(rows, columns)
    noise = numbers.signed(height * width * dim).reshape(height, width, dim)
    place = np.ix_(np.arange(height) // 7, np.arange(width) // 7)
    return unit((signal * directions[kinds[place]] + noise).astype(np.float64)), kinds[place]


def features(embeddings: np.ndarray) -> np.ndarray:
    height, width, dim = embeddings.shape
    row = np.repeat(np.arange(height)[:, None] / height, width, axis=1)
    column = np.repeat(np.arange(width)[None, :] / width, height, axis=0)
    placed = np.concatenate([embeddings, row[..., None], column[..., None]], axis=-1)
    return unit(placed.reshape(height * width, dim + 2))


def start(height: int, width: int, grid: int) -> np.ndarray:
    """Blocks numbered down the columns."""
    y, x = np.mgrid[:height, :width]
    row, column = y // -(-height // grid), x // -(-width // grid)
    return (row + (row.max() + 1) * column).ravel()


def sums(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    total = np.zeros((count, rows.shape[1]))
    np.add.at(total, labels, rows)
    return total


def check_margin(scores: np.ndarray, what: str) -> None:
    best = np.sort(scores, axis=1)[:, -2:]
    margin = (best[:, 1] - best[:, 0]).min()
    assert margin > MARGIN, f"{what}: two scores differ by {margin} only; choose another seed"


def spherical(rows: np.ndarray, labels: np.ndarray, rounds: int, keep: list[int]):
    count = labels.max() + 1
    kept = []
    for n in range(1, rounds + 1):
        assert np.bincount(labels, minlength=count).min() > 0, "an empty cluster"
        centroids = unit(sums(rows, labels, count))
        by_sklearn = pairwise_distances_argmin(rows, centroids)
        scores = rows @ centroids.T
        check_margin(scores, f"k-means, round {n}")
        # scikit-learn: one iteration from these unit centroids.
        one = KMeans(count, init=centroids, n_init=1, max_iter=1, algorithm="lloyd").fit(rows)
        labels = scores.argmax(axis=1)
        assert (labels == by_sklearn).all(), f"scikit-learn assigns otherwise in round {n}"
        if np.bincount(labels, minlength=count).min() > 0:
            means = unit(sums(rows, labels, count))
            found = unit(one.cluster_centers_)
            assert np.abs(means - found).max() < 1e-9, f"KMeans moves otherwise in round {n}"
        if n in keep:
            kept.append(labels.astype(np.uint8))
    return kept


def write_kmeans() -> None:
    for seed in range(1, 1000):
        embeddings, _ = regions(Numbers(seed), 42, 56, 32, 8, 1)
        try:
            kept = spherical(features(embeddings), start(42, 56, 5), 50, [1, 2, 10, 50])
            break
        except AssertionError as reason:
            print(f"k-means, seed {seed}: {reason}")
    changed = (kept[0] != kept[-1]).mean()
    print(f"k-means: seed {seed}, {100 * changed:.0f} % of the labels change after the first round")
    (HERE / "kmeans.bin").write_bytes(bytes([seed]) + b"".join(one.tobytes() for one in kept))


def write_separated() -> None:
    height = width = 38
    for seed in range(1, 256):
        embeddings, _ = regions(Numbers(seed), height, width, 32, 40, 8)
        rows, labels = features(embeddings), start(height, width, 5)
        begin = unit(sums(rows, labels, 25))
        free = KMeans(25, init=begin, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(rows)
        try:
            kept = spherical(rows, labels, 50, [50])[0]
        except AssertionError as reason:
            print(f"separated, seed {seed}: {reason}")
            continue
        if (free.labels_ == kept).all():
            break
        print(f"separated, seed {seed}: {(free.labels_ != kept).sum()} cells end elsewhere")
    moved = (start(height, width, 5) != kept).mean()
    print(f"separated: seed {seed}, {100 * moved:.0f} % of the labels change, "
          f"{free.n_iter_} iterations, inertia {free.inertia_:.3f}")
    (HERE / "separated.bin").write_bytes(bytes([seed]) + kept.tobytes())


def write_knn() -> None:
    count, queries, dim, k = 4000, 200, 32, 15
    for seed in range(1, 200):
        numbers = Numbers(seed)
        prototypes = unit(numbers.signed(count * dim).reshape(count, dim).astype(np.float64))
        asked = unit(numbers.signed(queries * dim).reshape(queries, dim).astype(np.float64))
        classes = numbers.below(count, 21)
        search = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute")
        distances, nearest = search.fit(prototypes).kneighbors(asked)
        gap = np.diff(distances, axis=1).min()
        if gap > 1e-6:
            break
        print(f"neighbours, seed {seed}: two distances differ by {gap} only")
    vote = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    votes = vote.fit(prototypes, classes).predict(asked)
    ties = sum(
        counts[0] == counts[1]
        for counts in ([n for _, n in Counter(classes[row[:k]]).most_common(2)] for row in nearest)
        if len(counts) > 1
    )
    print(f"neighbours: seed {seed}, {ties} of {queries} votes are ties")
    table = nearest[:, :k].astype("<u2").tobytes()
    (HERE / "knn.bin").write_bytes(bytes([seed]) + table + votes.astype(np.uint8).tobytes())


def write_miou() -> None:
    numbers, (height, width), classes = Numbers(7), (60, 80), 21
    truths, predictions = [], []
    for _ in range(3):
        truth = numbers.below(height * width, 24)
        truth[truth > 20] = 255
        # Class 20 is in neither, 19 only predicted.
        truth[(truth == 20) | (truth == 19)] = 0
        wrong = numbers.below(height * width, 4) == 0
        other = numbers.below(height * width, 20)
        truths.append(truth)
        predictions.append(np.where(wrong | (truth == 255), other, truth))
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    counted = truth != 255
    truth, prediction = truth[counted], prediction[counted]
    ids = list(range(classes))
    matrix = confusion_matrix(truth, prediction, labels=ids)
    iou = jaccard_score(truth, prediction, labels=ids, average=None, zero_division=0)
    present = matrix.sum(axis=1) > 0
    figures = {
        "confusion": matrix.tolist(),
        "iou": iou.tolist(),
        "mean_all": float(iou.mean()),
        "mean_present": float(iou[present].mean()),
        "pixel_accuracy": float(accuracy_score(truth, prediction)),
    }
    (HERE / "miou.json").write_text(json.dumps(figures) + "\n")


def write_purity() -> None:
    numbers, (height, width) = Numbers(9), (48, 64)
    by_concept: dict[int, Counter] = {}
    unlabelled = 0
    for _ in range(3):
        # Blocks of 4x4 cells, so that segments have some size and touch at corners too.
        blocks = numbers.below(height * width // 16, 6).reshape(height // 4, width // 4)
        concepts = 100 * blocks.repeat(4, axis=0).repeat(4, axis=1)
        classes = numbers.below(height * width, 7).reshape(height, width)
        classes[classes > 4] = 255
        classes[concepts == 300] = 255
        # Background 0 is an id as well.
        segments = label(concepts + 1, connectivity=1)
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            pixels = np.bincount(classes[inside & (classes != 255)], minlength=5)
            if pixels.sum() == 0:
                unlabelled += 1
                continue
            concept = int(concepts[inside][0])
            by_concept.setdefault(concept, Counter())[int(pixels.argmax())] += 1
    per_concept = [
        {
            "concept": concept,
            "segments": sum(counts.values()),
            "purity": max(counts.values()) / sum(counts.values()),
        }
        for concept, counts in sorted(by_concept.items())
    ]
    segments = sum(one["segments"] for one in per_concept)
    figures = {
        "unlabelled": unlabelled,
        "segments": segments,
        "mean": float(np.mean([one["purity"] for one in per_concept])),
        "mean_weighted": sum(one["purity"] * one["segments"] for one in per_concept) / segments,
        "per_concept": per_concept,
    }
    (HERE / "purity.json").write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    write_miou()
    write_purity()
    write_knn()
    write_separated()
    write_kmeans()

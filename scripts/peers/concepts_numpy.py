"""Spherical k-means, codebook, upsampling and merging: the fastest way that was found in NumPy,
with a matrix product for every step that can be one, and SciPy to find connected areas."""

import numpy as np
from scipy import ndimage

GRID = 5
ROUNDS = 10


def unit(rows):
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return rows / np.maximum(length, 1e-12)[:, None]


def start(height, width):
    """Blocks numbered down the columns."""
    block_h, block_w = -(-height // GRID), -(-width // GRID)
    rows, columns = np.arange(height) // block_h, np.arange(width) // block_w
    return (rows[:, None] + (rows[-1] + 1) * columns[None, :]).ravel()


def sums(labels, count, values):
    """Sum of the values of each cluster: a product with a matrix of ones and zeros."""
    ones = labels == np.arange(count)[:, None]
    return ones.astype(np.float32) @ values


def interpolation(source, target):
    """`[target, source]`: bilinear interpolation along one axis, pixel centres at halves."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = position.astype(int)
    share = (position - low).astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - share)
    np.add.at(matrix, (np.arange(target), np.minimum(low + 1, source - 1)), share)
    return matrix


class Labeler:
    """Labels embeddings `[height, width, dim]` at `size`, which is (height, width)."""

    def __init__(self, codebook, size):
        self.codebook, self.size = codebook, size
        self.grid = None

    def prepare(self, grid):
        """What depends on the grid alone and stays from frame to frame."""
        if self.grid == grid:
            return
        self.grid = height, width = grid
        y, x = np.mgrid[:height, :width]
        self.places = np.stack([y / height, x / width], -1).astype(np.float32)
        self.begin = start(height, width)
        self.rows = interpolation(height, self.size[0])
        self.columns = interpolation(width, self.size[1]).T.copy()

    def __call__(self, embedding):
        """Concept and segment of each pixel."""
        height, width, dim = embedding.shape
        self.prepare((height, width))
        cells = embedding.reshape(-1, dim)
        raw = np.concatenate([embedding, self.places], -1).reshape(height * width, -1)
        features = self.unit(raw)
        labels, count = self.begin, self.begin.max() + 1
        for _ in range(ROUNDS):
            alive = np.flatnonzero(np.bincount(labels, minlength=count))
            centroids = self.unit(sums(labels, count, features))
            before, labels = labels, alive[self.assign(features, centroids[alive])]
            if np.array_equal(before, labels):
                break
        present = np.unique(labels)
        prototypes = self.unit(sums(labels, count, cells)[present])
        concept_of = self.assign(prototypes, self.codebook).astype(np.uint16)
        scores = (centroids[present] @ raw.T).reshape(-1, height, width)
        concepts = concept_of[self.winners(scores)]
        return concepts, self.segments(concepts)

    unit = staticmethod(unit)

    def assign(self, rows, centroids):
        return np.argmax(rows @ centroids.T, axis=1)

    def winners(self, scores):
        # A running maximum touches each map once; argmax over the first axis jumps through all.
        best = self.rows @ scores[0] @ self.columns
        winners = np.zeros(self.size, np.uint8)
        for index in range(1, len(scores)):
            score = self.rows @ scores[index] @ self.columns
            winners[score > best] = index
            np.maximum(best, score, out=best)
        return winners

    def segments(self, concepts):
        segments = np.zeros(concepts.shape, np.int32)
        found = 0
        for concept in np.unique(concepts):
            mask = concepts == concept
            parts, count = ndimage.label(mask)
            np.add(parts, found, out=segments, where=mask)
            found += count
        return segments

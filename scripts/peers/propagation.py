"""Mask propagation after the protocol of DINO (Caron et al., 2021, section 4.2.2).

Every cell looks for the cells most like it in the first frame and the latest seven, at most
RADIUS cells away; the best TOPK of all these frames give it their labels, weighted by
exp(cosine / TEMPERATURE). Two ways: `Windowed` in NumPy looks only where the window is, a tile of
cells at a time; `Dense` in PyTorch builds the whole affinity and masks it, as the published
evaluation does.
"""

from collections import deque

import numpy as np

CONTEXT = 7
RADIUS = 12
TOPK = 5
TEMPERATURE = 0.1
STRIDE = 8
# A label below this has left the view; one that varies by less than that is constant.
TRACE, FLAT = 1e-3, 1e-6


def nearest(target, source):
    """Source index of each target index, pixel centres at halves."""
    return (2 * np.arange(target) + 1) * source // (2 * target)


def bilinear(source, target):
    """Lower index, upper index and weight of the upper for each target index."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = position.astype(int)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)


def first_labels(mask, grid):
    """Share of each instance in each cell, `[cells, channels]`, background first; and the ids."""
    height, width = grid
    ids = [i for i in np.unique(mask) if i not in (0, 255)]
    resized = mask[nearest(height * STRIDE, mask.shape[0])][:, nearest(width * STRIDE, mask.shape[1])]
    planes = [np.isin(resized, ids, invert=True)] + [resized == i for i in ids]
    blocks = np.stack(planes).reshape(-1, height, STRIDE, width, STRIDE)
    shares = blocks.mean(axis=(2, 4), dtype=np.float32)
    return shares.reshape(len(planes), -1).T.copy(), np.array([0, *ids], np.uint8)


def masks(labels, grid, ids, size):
    """The soft labels at network size, scaled to 0..1 by channel; the highest wins."""
    height, width = grid
    planes = labels.T.reshape(-1, height, width)
    top, bottom, v = bilinear(height, height * STRIDE)
    left, right, u = bilinear(width, width * STRIDE)
    best, winner = None, np.zeros((height * STRIDE, width * STRIDE), np.uint8)
    for channel, plane in enumerate(planes):
        rows = plane[top] * (1 - v)[:, None] + plane[bottom] * v[:, None]
        scaled = rows[:, left] * (1 - u) + rows[:, right] * u
        low, high = scaled.min(), scaled.max()
        if high < TRACE:
            scaled[:] = -1
        elif high - low >= FLAT:
            scaled = (scaled - low) / (high - low)
        if best is None:
            best = scaled
        else:
            winner[scaled > best] = channel
            np.maximum(best, scaled, out=best)
    network = ids[winner]
    return network[nearest(size[0], network.shape[0])][:, nearest(size[1], network.shape[1])]


def best(scores, count):
    """Columns and values of the highest of each row, from the highest; spoils `scores`. A few rounds
    of argmax take a twentieth of the time of argpartition."""
    rows = np.arange(len(scores))
    columns = np.empty((len(scores), count), np.int64)
    values = np.empty((len(scores), count), np.float32)
    for index in range(count):
        columns[:, index] = found = scores.argmax(axis=1)
        values[:, index] = scores[rows, found]
        scores[rows, found] = -np.inf
    return columns, values


class Windowed:
    """The search in NumPy, a tile of cells at a time, never more than a tile's window in memory."""

    TILE = 8

    def __init__(self, embedding, mask):
        self.grid, self.dim = embedding.shape[:2], embedding.shape[2]
        self.size = mask.shape
        labels, self.ids = first_labels(mask, self.grid)
        # Features and labels that lie in the first frame and the latest ones.
        self.first = (embedding, labels)
        self.latest = deque(maxlen=CONTEXT)
        self.tiles = [self.tile(y, x) for y in range(0, self.grid[0], self.TILE)
                      for x in range(0, self.grid[1], self.TILE)]

    def tile(self, y, x):
        """Slices of a tile and of its window; -inf where a cell of it does not see a cell of that."""
        height, width = self.grid
        cells = (slice(y, min(y + self.TILE, height)), slice(x, min(x + self.TILE, width)))
        window = (slice(max(y - RADIUS, 0), min(y + self.TILE + RADIUS, height)),
                  slice(max(x - RADIUS, 0), min(x + self.TILE + RADIUS, width)))
        far = []
        for of_cell, of_window in zip(cells, window):
            a, b = np.arange(of_cell.start, of_cell.stop), np.arange(of_window.start, of_window.stop)
            far.append(np.abs(a[:, None] - b) > RADIUS)
        hidden = far[0][:, None, :, None] | far[1][None, :, None, :]
        count = hidden.shape[0] * hidden.shape[1]
        # To be added to scores, which takes a tenth of the time that assigning by a mask takes.
        bias = np.where(hidden.reshape(count, -1), -np.inf, 0).astype(np.float32)
        return cells, window, bias

    def step(self, embedding):
        context = [self.first, *self.latest]
        channels = self.first[1].shape[1]
        features = np.stack([frame for frame, _ in context])
        values = np.stack([labels for _, labels in context]).reshape(len(context), *self.grid, channels)
        labels = np.empty((*self.grid, channels), np.float32)
        for cells, window, bias in self.tiles:
            here = embedding[cells]
            seen = features[:, *window].reshape(-1, self.dim)
            scores = here.reshape(-1, self.dim) @ seen.T
            # In place: the view has one axis for the frames.
            frames = scores.reshape(len(scores), len(context), -1)
            frames += bias[:, None]
            kept, score = best(scores, TOPK)
            weight = np.exp((score - score[:, :1]) / TEMPERATURE)
            weight /= weight.sum(1, keepdims=True)
            given = values[:, *window].reshape(-1, channels)[kept]
            labels[cells] = np.einsum("nk,nkc->nc", weight, given).reshape(*here.shape[:2], channels)
        labels = labels.reshape(-1, channels)
        self.latest.append((embedding, labels))
        return masks(labels, self.grid, self.ids, self.size)


class Dense:
    """The search in PyTorch: affinity of every cell with every cell, masked by the window."""

    def __init__(self, embedding, mask):
        import torch

        self.torch = torch
        self.grid = height, width = embedding.shape[:2]
        self.size = mask.shape
        labels, self.ids = first_labels(mask, self.grid)
        self.first = (self.flat(embedding), torch.from_numpy(labels))
        self.latest = deque(maxlen=CONTEXT)
        y = torch.arange(height).repeat_interleave(width)
        x = torch.arange(width).repeat(height)
        near = ((y[:, None] - y).abs() <= RADIUS) & ((x[:, None] - x).abs() <= RADIUS)
        self.near = near.float()

    def flat(self, embedding):
        return self.torch.from_numpy(embedding.reshape(-1, embedding.shape[2]))

    def step(self, embedding):
        torch = self.torch
        with torch.inference_mode():
            here = self.flat(embedding)
            context = [self.first, *self.latest]
            seen = torch.stack([features for features, _ in context])
            # [frames, cells there, cells here]
            affinity = torch.exp(torch.bmm(seen, here.T.expand(len(context), -1, -1)) / TEMPERATURE)
            affinity *= self.near
            affinity = affinity.reshape(-1, len(here))
            lowest = torch.topk(affinity, TOPK, dim=0).values[-1]
            affinity[affinity < lowest] = 0
            affinity /= affinity.sum(0, keepdim=True)
            labels = affinity.T @ torch.cat([labels for _, labels in context])
        self.latest.append((here, labels))
        return masks(labels.numpy(), self.grid, self.ids, self.size)

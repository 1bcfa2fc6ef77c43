"""Writes golden partitions of a generated image, made by scikit-image.

Run from this folder with numpy, pillow and scikit-image installed:
    python felzenszwalb.py
It writes felzenszwalb-<scale>-<min size>.png (grey value = label), which the tests of
src/data/felzenszwalb.rs compare with. Made with scikit-image 0.26.0, numpy 2.4, scipy 1.17.
"""

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

WIDTH, HEIGHT = 160, 120
CASES = [(300.0, 60), (60.0, 25)]


def generated_image():
    """Coloured discs on a ramp with noise, in whole numbers only; the same as in the test."""
    y, x, c = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), np.arange(3), indexing="ij")
    value = 60 + x * (c + 1) // 4 + y * (3 - c) // 5
    for i in range(9):
        cx, cy, r = i * 53 % WIDTH, i * 37 % HEIGHT, 9 + i * 5 % 17
        value = np.where((x - cx) ** 2 + (y - cy) ** 2 < r * r, i * 71 % 200 + c * 20, value)
    # A multiplicative hash (Knuth) of the position.
    noise = ((y * WIDTH + x) * 3 + c + 1) * 2654435761 % 2**32 >> 28
    return np.clip(value + noise, 0, 255).astype(np.uint8)


def canonical(labels):
    _, first, inverse = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].reshape(labels.shape)


for scale, min_size in CASES:
    labels = canonical(felzenszwalb(generated_image(), scale=scale, sigma=0.8, min_size=min_size))
    count = int(labels.max()) + 1
    # Labels must fit a byte, and a trivial partition would test nothing.
    assert 4 < count < 256, count
    name = f"felzenszwalb-{scale:.0f}-{min_size}.png"
    Image.fromarray(labels.astype(np.uint8)).save(name, optimize=True)
    print(name, count)

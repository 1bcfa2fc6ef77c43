"""Concept labelling as a contestant, in two ways to the same labels: `numpy` (concepts_numpy.py, but
for the segments), and `libraries`, which takes the function that a library has for each step."""

import argparse
from pathlib import Path

import numpy as np
import scipy
import skimage
import sklearn
from concepts_numpy import Labeler
from scipy import ndimage
from serve import in_order, serve
from skimage.measure import label
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import normalize


class FastLabeler(Labeler):
    def segments(self, concepts):
        # Three times as fast as SciPy's, concept by concept.
        return label(concepts, background=-1, connectivity=1)


class LibraryLabeler(FastLabeler):
    unit = staticmethod(normalize)

    def assign(self, rows, centroids):
        # Of unit vectors the nearest is the one of the highest cosine.
        return pairwise_distances_argmin(rows, centroids)

    def winners(self, scores):
        zoom = (1, self.size[0] / scores.shape[1], self.size[1] / scores.shape[2])
        return ndimage.zoom(scores, zoom, order=1, mode="nearest", grid_mode=True).argmax(axis=0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--way", choices=["numpy", "libraries"], required=True)
    args = parser.parse_args()
    embedding = np.load(args.inputs / "embeddings.npy")[-1].copy()
    of_way = {"numpy": FastLabeler, "libraries": LibraryLabeler}[args.way]
    labeler = of_way(np.load(args.inputs / "codebook.npy"), (480, 854))

    def run():
        return labeler(embedding)

    def check():
        concepts, segments = run()
        return np.stack([concepts, in_order(segments)]).astype(np.uint16)

    description = f"NumPy {np.__version__}, scikit-image {skimage.__version__}"
    if args.way == "libraries":
        description += f", SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    serve(description, run, check)


if __name__ == "__main__":
    main()

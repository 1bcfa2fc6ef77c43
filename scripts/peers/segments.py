"""Pseudo segments by scikit-image's `felzenszwalb`, which is compiled by Cython."""

import argparse

import numpy as np
import skimage
from PIL import Image
from serve import in_order, serve
from skimage.segmentation import felzenszwalb


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--sigma", type=float, required=True)
    parser.add_argument("--min-size", type=int, required=True)
    args = parser.parse_args()
    images = [np.asarray(Image.open(file).convert("RGB")) for file in args.images.split(",")]

    def run():
        return [felzenszwalb(image, args.scale, args.sigma, args.min_size) for image in images]

    def check():
        return np.concatenate([in_order(labels).ravel() for labels in run()]).astype(np.uint32)

    serve(f"scikit-image {skimage.__version__}", run, check)


if __name__ == "__main__":
    main()

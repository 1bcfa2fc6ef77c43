"""A cold start in Python: opens the network, labels one image, prints its concepts, and ends.

Only what is needed is imported: NumPy, Pillow, onnxruntime, and SciPy's labelling.
"""

import argparse
import json

import numpy as np
from bundle import Preparation, codebook
from concepts_numpy import Labeler
from network_onnxruntime import session
from PIL import Image


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out")
    args = parser.parse_args()
    network = session(args.bundle, args.threads)
    image = Image.open(args.image).convert("RGB")
    feed = {network.get_inputs()[0].name: Preparation(args.bundle)(image)}
    embedding = np.ascontiguousarray(network.run(None, feed)[0][0].transpose(1, 2, 0))
    concepts, _ = Labeler(codebook(args.bundle), image.size[::-1])(embedding)
    found, areas = np.unique(concepts, return_counts=True)
    print(json.dumps({int(concept): int(area) for concept, area in zip(found, areas)}), flush=True)
    if args.out:
        with open(args.out, "wb") as file:
            np.save(file, concepts)


if __name__ == "__main__":
    main()

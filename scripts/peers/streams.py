"""Resident memory of one stream and of more, in one Python process with one onnxruntime session:
each stream decodes, labels concepts and carries masks as ours does."""

import argparse
import io
from pathlib import Path

import numpy as np
import onnxruntime
from bundle import Preparation, codebook
from concepts_numpy import Labeler
from network_onnxruntime import session
from PIL import Image
from propagation import Windowed
from serve import serve

# Frames that a new stream sees before its memory counts.
WARM = 10


class Stream:
    def __init__(self, network, preparation, concepts, mask):
        self.network, self.preparation, self.mask = network, preparation, mask
        self.labeler = Labeler(concepts, mask.shape)
        self.tracker = None

    def show(self, jpeg):
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        feed = {self.network.get_inputs()[0].name: self.preparation(image)}
        output = self.network.run(None, feed)[0][0]
        embedding = np.ascontiguousarray(output.transpose(1, 2, 0))
        self.concepts, self.segments = self.labeler(embedding)
        if self.tracker is None:
            self.tracker = Windowed(embedding, self.mask)
            self.masks = self.mask
        else:
            self.masks = self.tracker.step(embedding)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    network = session(args.bundle, args.threads)
    shared = (network, Preparation(args.bundle), codebook(args.bundle))
    mask = np.asarray(Image.open(args.inputs / "mask.png"))
    footage = [file.read_bytes() for file in sorted((args.inputs / "frames").glob("*.jpg"))]
    streams = []

    def run():
        for stream in streams:
            stream.show(footage[0])

    def grow(count):
        while len(streams) < count:
            streams.append(Stream(*shared, mask))
        for index in range(WARM):
            for stream in streams:
                stream.show(footage[index % len(footage)])

    serve(f"onnxruntime {onnxruntime.__version__}, NumPy {np.__version__}", run, grow=grow)


if __name__ == "__main__":
    main()

"""What the peers read of a bundle, and the frame on its way into the network."""

import json
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image


def manifest(folder):
    return tomllib.loads((Path(folder) / "bundle.toml").read_text())


def network_file(folder):
    return str(Path(folder) / manifest(folder)["embedder"]["file"])


def codebook(folder):
    """`[concepts, dim]` out of a .safetensors file: a length, a JSON header, the data."""
    raw = (Path(folder) / manifest(folder)["concepts"]["file"]).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length])["codebook"]
    begin, end = entry["data_offsets"]
    data = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.float32)
    return data.reshape(entry["shape"])


def network_size(width, height, short=480):
    """Width and height of the network's input: short side `short`, long side down to a multiple of 64."""
    long = max(64, short * max(width, height) // min(width, height) // 64 * 64)
    return (short, long) if height > width else (long, short)


class Preparation:
    """Image to `[1, 3, height, width]`, resized and normalised."""

    def __init__(self, folder):
        channels = manifest(folder)["input"]
        mean, std = np.float32(channels["mean"]), np.float32(channels["std"])
        self.scale, self.offset = (1 / (255 * std)).astype(np.float32), -mean / std

    def __call__(self, image):
        size = network_size(*image.size)
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        values = resized * self.scale + self.offset
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

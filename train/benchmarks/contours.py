#!/usr/bin/env python3
"""Contour maps of photographs, from a detector small enough to be fitted in a minute.

    python train/benchmarks/contours.py --backbone mobilenet_v2.safetensors --bsds BSDS500 \\
        --images photos/ --out contours/

A logistic regression on the maps of the first blocks of MobileNetV2 (torchvision's names, batch
normalisation folded), fitted to the boundaries that people drew in BSDS500. It stands in for HED
in comparisons of pseudo segments: like HED it has learnt from human boundaries, so segments made
of its maps are not free of annotation; it is far weaker. Writes PNGs for
`conceptseg-train segments --source contours`. Needs torch, safetensors, scipy, pillow.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scipy.io import loadmat
from scipy.ndimage import binary_dilation
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from eager import InvertedResidual, SameConv2d, conv_relu6  # noqa: E402

# Blocks whose maps are looked at: strides 2, 4 and 8.
TAPS = (1, 3, 6)
STEPS = 300


class Backbone(nn.Module):
    """MobileNetV2 up to its sixth block, with the differences of its maps to their surroundings."""

    def __init__(self, file):
        super().__init__()
        layers, inputs = [conv_relu6(SameConv2d(3, 32, 3, stride=2))], 32
        for expansion, outputs, blocks, halve in [(1, 16, 1, False), (6, 24, 2, True), (6, 32, 3, True)]:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, expansion, halve and block == 0, 1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        ours = self.state_dict()
        loaded = {name: tensor.float() for name, tensor in load_file(file).items()}
        self.load_state_dict({name: loaded[name] for name in ours})

    @torch.no_grad()
    def forward(self, image):
        """[1, 3, h, w] in 0..1 to [1, c, h, w]."""
        maps, x = [], image * 2 - 1
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                around = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
                maps += [x, (x - around).abs(), self.slope(x)]
        size = image.shape[2:]
        return torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1)

    @staticmethod
    def slope(x):
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        return (right.square() + down.square()).sqrt()


def read(path):
    array = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def fit(backbone, bsds):
    """Weights of the regression: pixels near a boundary that two people drew are positive, those
    near none negative, others left out."""
    found, wanted = [], []
    for file in sorted(bsds.rglob("*.mat")):
        people = loadmat(file).get("groundTruth")
        if people is None:
            continue
        drawn = [person["Boundaries"][0, 0] > 0 for person in people[0]]
        votes = sum(binary_dilation(one, iterations=1).astype(int) for one in drawn)
        image = next(bsds.rglob(f"{file.stem}.jpg"))
        maps = backbone(read(image))[0].flatten(1).T
        label = torch.from_numpy(votes).flatten()
        keep = (label == 0) | (label >= 2)
        found.append(maps[keep])
        wanted.append((label[keep] >= 2).float())
    if not found:
        sys.exit(f"contours: {bsds} holds no groundTruth of BSDS500")
    found, wanted = torch.cat(found), torch.cat(wanted)
    mean, std = found.mean(0), found.std(0) + 1e-6
    found = (found - mean) / std
    linear = nn.Linear(found.shape[1], 1)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.02)
    balance = (wanted == 0).sum() / wanted.sum()
    torch.manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(len(found), (16384,))
        score = linear(found[rows])[:, 0]
        loss = F.binary_cross_entropy_with_logits(score, wanted[rows], pos_weight=balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"fitted to {len(found)} pixels, loss {loss.item():.3f}", file=sys.stderr)
    return lambda maps: torch.sigmoid(linear((maps - mean) / std))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--bsds", type=Path, required=True, help="images and groundTruth, in depth")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    backbone = Backbone(args.backbone).eval()
    detector = fit(backbone, args.bsds)
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in args.images:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".png"}):
            target = args.out / f"{path.stem}.png"
            if target.is_file():
                continue
            image = read(path)
            with torch.no_grad():
                contour = detector(backbone(image)[0].flatten(1).T)[:, 0]
            contour = contour.reshape(image.shape[2:]).numpy()
            Image.fromarray((255 * contour).round().astype(np.uint8)).save(target)


if __name__ == "__main__":
    main()

"""The trainer's input as one writes it with Pillow, NumPy and scikit-image: in processes of the
standard library's pool, or with --way torch of PyTorch's DataLoader."""

import argparse
import multiprocessing
import random

import numpy as np
import PIL
import skimage
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from serve import serve
from skimage.segmentation import felzenszwalb

MEAN, STD = 0.5, 0.25
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
JITTER, STRENGTH, HUE = 0.8, 0.8, 0.2
GREY, BLUR, SIGMA = 0.2, 0.5, (0.1, 2.0)
# Smallest segment, for an image of that many pixels.
SMALLEST, REFERENCE = 400, 500 * 375


def read(path, short_side):
    image = Image.open(path)
    # The decoder skips what a reduced image does not need.
    image.draft("RGB", (short_side, short_side))
    image = image.convert("RGB")
    scale = short_side / min(image.size)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def segments_of(image):
    pixels = np.asarray(image)
    smallest = round(SMALLEST * image.width * image.height / REFERENCE)
    labels = felzenszwalb(pixels, scale=300, sigma=0.8, min_size=max(1, smallest))
    return Image.fromarray(labels.astype(np.int32))


def crop_of(width, height):
    """Left, top, right and bottom of a random part."""
    for _ in range(ATTEMPTS):
        area = random.uniform(*AREA) * width * height
        aspect = np.exp(random.uniform(*np.log(ASPECT)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            x, y = random.randint(0, width - w), random.randint(0, height - h)
            return x, y, x + w, y + h
    side = min(width, height)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def turned(image, turn):
    """The hue, which Pillow keeps as a byte, turned by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.uint8(int(turn * 255) % 256))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jittered(image):
    def factor():
        return random.uniform(1 - STRENGTH, 1 + STRENGTH)

    steps = [
        lambda image: ImageEnhance.Brightness(image).enhance(factor()),
        lambda image: ImageEnhance.Contrast(image).enhance(factor()),
        lambda image: ImageEnhance.Color(image).enhance(factor()),
        lambda image: turned(image, random.uniform(-HUE, HUE)),
    ]
    random.shuffle(steps)
    for step in steps:
        image = step(image)
    return image


def view(image, segments, side):
    """A random view and the segments under it."""
    box = crop_of(*image.size)
    image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    segments = segments.resize((side, side), Image.Resampling.NEAREST, box=box)
    if random.random() < 0.5:
        image, segments = ImageOps.mirror(image), ImageOps.mirror(segments)
    if random.random() < JITTER:
        image = jittered(image)
    if random.random() < GREY:
        image = image.convert("L").convert("RGB")
    if random.random() < BLUR:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    pixels = (pixels * np.float32(1 / 255) - np.float32(MEAN)) / np.float32(STD)
    return pixels, np.asarray(segments).astype(np.uint16)


class Images:
    """Two views of each image, as a data set of PyTorch has them."""

    def __init__(self, files, batch, batches, short_side, crop):
        self.files, self.short_side, self.crop = files, short_side, crop
        self.batch, self.count = batch, batch * batches

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = read(self.files[index % len(self.files)], self.short_side)
        segments = segments_of(image)
        pixels, ids = zip(*(view(image, segments, self.crop) for _ in range(2)))
        return np.stack(pixels), np.stack(ids)

    def whole(self, number):
        """A batch."""
        first = number * self.batch
        pixels, ids = zip(*(self[first + k] for k in range(self.batch)))
        return np.concatenate(pixels), np.concatenate(ids)


def pooled(images, threads, batches):
    """Batches by a pool of processes that stay."""
    pool = multiprocessing.get_context("fork").Pool(threads)
    return lambda: [pixels for pixels, _ in pool.imap(images.whole, range(batches))]


def loaded(images, threads, batch):
    """Batches by a DataLoader whose processes stay."""
    from torch.utils.data import DataLoader

    loader = DataLoader(images, batch, num_workers=threads, persistent_workers=True)
    return lambda: [pixels.numpy() for pixels, _ in loader]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--way", choices=["pool", "torch"], default="pool")
    for name in ("batch", "crop", "short-side", "threads", "batches"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    files = args.images.split(",")
    images = Images(files, args.batch, args.batches, args.short_side, args.crop)
    description = f"Pillow {PIL.__version__}, scikit-image {skimage.__version__}"
    if args.way == "torch":
        import torch

        description = f"PyTorch {torch.__version__}, {description}"
        run = loaded(images, args.threads, args.batch)
    else:
        run = pooled(images, args.threads, args.batches)

    def check():
        values = np.concatenate([pixels.ravel() for pixels in run()]).astype(np.float64)
        return np.array([values.size, values.mean(), values.std()])

    serve(description, run, check)


if __name__ == "__main__":
    main()

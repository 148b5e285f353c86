"""The row of the image files: images a second in one process, beside a plain Pillow loop.

Decoding limits both, and resizing after it: libjpeg and Pillow take nearly all of the time. So one process cannot be
much faster than a plain loop; more of them can. A crop of 224 from 500 x 375 is never twice as large, so that decoding
at half the size does not come in here: it does with larger files.
"""

from __future__ import annotations

import atexit
import io
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import Row, Side
from resid.data.imagenet import IMAGENET_MEAN, IMAGENET_STD, ImageBatches, ImageFiles
from resid.data.loading import load_dataset

IMAGES = 200
BATCH = 50


def _folder() -> Path:
    """Class folders of JPEG files of 500 x 375 with detail on every scale, about 100 KB each, as those of ImageNet."""
    root = Path(tempfile.mkdtemp(prefix="bench-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    chance = np.random.default_rng(0)
    for i in range(IMAGES):
        place = root / "train" / f"n{i % 2:08d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.JPEG").write_bytes(_photograph(chance))
    return root


def _photograph(chance: np.random.Generator) -> bytes:
    """Noise whose amplitude falls with its frequency, as that of photographs does."""
    pixels = np.full((375, 500, 3), 128.0, dtype=np.float32)
    for octave in range(8):
        shape = (375 * 2**octave // 128 + 2, 500 * 2**octave // 128 + 2)
        for channel in range(3):
            noise = Image.fromarray(chance.normal(0, 60 * 0.83**octave, shape).astype(np.float32))
            pixels[..., channel] += np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _files() -> ImageFiles:
    return load_dataset("imagenet", "train", _folder())


def _stream(files: ImageFiles) -> None:
    for _ in ImageBatches(files, BATCH, 0).epoch(0):
        pass


def _plain_loop(files: ImageFiles) -> None:
    """Open, decode all of it, random-resized crop, flip, tensor, normalise, one image after the other."""
    mean, std = ((t / 255).float().view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    order = list(range(len(files)))
    random.shuffle(order)
    batch: list[Tensor] = []
    for i in order:
        image = Image.open(files.folder / files.name(i)).convert("RGB")
        image = image.resize((224, 224), Image.Resampling.BILINEAR, box=_crop(*image.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        batch.append((tensor - mean) / std)
        if len(batch) == BATCH:
            torch.stack(batch)
            batch.clear()


def _crop(width: int, height: int) -> Any:
    while True:
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h


ROWS = (
    Row(
        name="images-jpeg",
        what="random-resized crops of 224 from JPEG files of 500 x 375, decoded in one process",
        ours=Side("batches of resid.data.imagenet", _files, _stream, IMAGES),
        peer=Side("a plain loop over Pillow images", _files, _plain_loop, IMAGES),
        threads=1,
        least_ratio=0.9,
        unit="image",
    ),
)

"""Image files to pixels for training on ImageNet: any file that Pillow reads, as RGB bytes, cropped and resized.

What the reference pipelines do is done here, so that published numbers can be compared: bilinear resizing with
antialiasing of the crop alone, and pixels as they are stored, whatever the EXIF orientation says (the labels do not
depend on it, and the published networks saw them so). Where they differ from each other or lose something, this is the
choice: transparent pixels are laid over white; 16 bits are divided by 257; CMYK is inverted as Adobe writes it, and
becomes RGB as (1 - c)(1 - k) without a colour profile.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop still has as many pixels as the result. Then less than
a factor of two is left for resizing, and Pillow's `reducing_gap` would change nothing.

Damage inside a JPEG that leaves its structure whole cannot be seen: libjpeg fills it with grey.
"""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from resid._arguments import as_size
from resid.errors import ResidError

__all__ = [
    "BrokenImageError",
    "Window",
    "decode_test",
    "decode_train",
    "draw_window",
    "open_image",
    "orientation",
    "reading",
    "reduce_jpeg",
    "to_rgb",
]

#: Pillow reads more, some of it by calling other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: More pixels than any photograph of ImageNet has; a worker would need 300 MB for them, and 400 more if transparent.
MOST_PIXELS = 100_000_000
#: Pixels that are converted at a time.
STRIP = 1_000_000
ORIENTATION = 0x0112
TRIES = 10


class BrokenImageError(ResidError):
    """A file is empty, truncated, too large or no image; the message says which."""


class Window(NamedTuple):
    """A part of an image, in pixels, and whether left and right are exchanged."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def draw_window(
    width: int,
    height: int,
    seed: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Window:
    """The random-resized crop of an image: a function of its size and of the seed alone.

    Area is uniform on `area`, as a fraction of the image, and width/height on `ratio`, uniform in its logarithm. What
    does not fit is drawn again, ten times at most, then the largest centred window of an allowed ratio is taken. These
    are the rules of torchvision's RandomResizedCrop; the random numbers are others.

    Args:
        width, height: of the image. seed: of this image in this epoch. flip: toss a coin for it.

    Example:
        >>> draw_window(500, 375, seed=1) == draw_window(500, 375, seed=1), draw_window(1000, 10, seed=1, flip=False)
        (True, Window(left=493, top=0, width=13, height=10, flip=False))
    """
    chance = random.Random(seed)  # its random() is the same in every version of Python
    mirrored = chance.random() < 0.5  # drawn first: it does not depend on the tries
    low, high = (math.log(value) for value in ratio)
    for _ in range(TRIES):
        target = width * height * (area[0] + (area[1] - area[0]) * chance.random())
        aspect = math.exp(low + (high - low) * chance.random())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        across, down = chance.random(), chance.random()
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return Window(left, top, w, h, flip and mirrored)
    w, h = width, height
    if width < ratio[0] * height:
        h = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = max(1, round(height * ratio[1]))
    return Window((width - w) // 2, (height - h) // 2, w, h, flip and mirrored)


def decode_train(content: bytes, size: int, seed: int, **options: Any) -> Tensor:
    """A random-resized crop of an image file: (3, size, size), uint8.

    Args:
        content: of the file. size: of the result. seed, options: of `draw_window`.

    Raises:
        BrokenImageError: the file cannot be decoded.
    """
    size = as_size("size", size)
    with reading():
        image = open_image(content)
        window = draw_window(*image.size, seed, **options)
        return cut(image, window, size)


def cut(image: Image.Image, window: Window, size: int) -> Tensor:
    """A window of an image not yet loaded, resized: (3, size, size), uint8. The result depends on its pixels alone."""
    left, top, width, height, flip = window
    scale = reduce_jpeg(image, min(width, height) // size)
    image = to_rgb(image)
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    # whole pixels first, so that the filter sees nothing beyond; a reduced image can have a fraction more at its edges
    x, y = math.floor(box[0]), math.floor(box[1])
    image = image.crop((x, y, min(math.ceil(box[2]), image.width), min(math.ceil(box[3]), image.height)))
    inner = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=inner)
    return _tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def decode_test(content: bytes, size: int = 224, side: int = 256) -> Tensor:
    """The middle of an image file whose shorter side becomes `side`: (3, size, size), uint8.

    Args:
        content: of the file. size: of the result. side: at least `size`; the longer one is rounded down.

    Raises:
        BrokenImageError: the file cannot be decoded. SizeError: a side less than the size.
    """
    size = as_size("size", size)
    side = as_size("side", side, size)
    with reading():
        image = open_image(content)
        width, height = image.size
        short = min(width, height)
        w, h = side * width // short, side * height // short
        scale = reduce_jpeg(image, short // side)
        image = to_rgb(image)
        across, down = width / scale / w, height / scale / h  # stored pixels for one of the result
        left, top = round((w - size) / 2) * across, round((h - size) / 2) * down
        # of the whole image, resized, only the middle is wanted: a long thin one would fill the memory
        x, y = (max(0, math.floor(at - 2 * max(1, step))) for at, step in ((left, across), (top, down)))
        right, bottom = left + size * across, top + size * down
        ends = (math.ceil(right + 2 * max(1, across)), math.ceil(bottom + 2 * max(1, down)))
        image = image.crop((x, y, min(ends[0], image.width), min(ends[1], image.height)))
        box = (left - x, top - y, min(right - x, image.width), min(bottom - y, image.height))
        return _tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def open_image(content: bytes) -> Image.Image:
    """A file opened by Pillow, its pixels not decoded yet.

    Raises:
        BrokenImageError: it is empty, no image, or has more than a hundred million pixels.
    """
    with reading():
        if not content:
            raise BrokenImageError("the file is empty")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise BrokenImageError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, transparent pixels over white, strip by strip.

    Raises:
        BrokenImageError: floating-point or 32-bit pixels, whose range is not known.
    """
    rows = max(1, STRIP // image.width)
    if image.mode == "RGB" or image.height <= rows:
        return _strip_to_rgb(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):  # each takes several times its own memory
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(_strip_to_rgb(strip), (0, top))
    return whole


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImageError(f"pixels from {values.min()} to {values.max()}: 8 or 16 bits are needed")
        return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BrokenImageError("floating-point pixels: 8 or 16 bits are needed")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """What EXIF asks for, 1 for the image as stored; metadata that cannot be read ask for nothing."""
    try:
        with reading():
            return int(image.getexif().get(ORIENTATION, 1))
    except BrokenImageError:
        return 1


def reduce_jpeg(image: Image.Image, most: int) -> int:
    """Have a JPEG decoded at 1/8, 1/4 or 1/2, at most 1/`most`; returns the denominator, 1 for all else."""
    scale = max(s for s in (1, 2, 4, 8) if s <= max(1, most))
    if scale == 1:
        return 1
    found = image.draft(None, (image.width // scale, image.height // scale))
    return scale if found is not None else 1


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def reading() -> Iterator[None]:
    """Whatever Pillow raises about a file becomes one error; what it warns of, a comment about metadata, is dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise anything: OSError, SyntaxError, struct.error, IndexError ...
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or "unreadable"
        raise BrokenImageError(f"{reason} ({type(error).__name__})") from error

"""A small tree of image files in the layout of ImageNet, drawn, not photographed: for tests and trial runs.

Each class is a grating of one orientation over one colour; place, contrast, wavelength, a disc and noise are nuisance.
Sizes vary as those of ImageNet do. Odd files of every kind that ImageNet has, or a bad disk leaves, can be among them.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from resid._arguments import as_size, check_option
from resid.data.batches import seed_of

__all__ = ["BROKEN", "ODD", "write_sample_tree"]

SIZES = ((500, 375), (375, 500), (500, 333), (500, 500), (333, 500), (400, 300), (640, 480), (160, 120), (250, 374))
BROKEN = ("truncated", "empty", "text")
ODD = ("cmyk", "grey", "palette", "transparent", "turned", "png", *BROKEN)


def write_sample_tree(
    folder: str | Path, classes: int = 4, per_class: int = 20, val: int = 5, seed: int = 0, odd: Collection[str] = ()
) -> Path:
    """Write train/n00000000/n00000000_0.JPEG and so on, and val in the same way; returns the folder.

    Args:
        folder: made if missing.
        classes: how many.
        per_class: training images of each.
        val: images of each for the other split, none if 0.
        seed: of all that is drawn; the files depend on nothing else.
        odd: kinds of odd files, each added once to the training images of a class, by turns, as CLASS_odd_KIND.JPEG:
            "cmyk", "grey", "palette", "transparent" and "png" (both PNG by content), "turned" (by EXIF), "truncated" in
            the middle, "empty", "text".

    Raises:
        OptionError: an unknown kind. SizeError: counts of no use.
    """
    root, classes = Path(folder), as_size("classes", classes)
    splits = {"train": as_size("per_class", per_class), "val": as_size("val", val, 0)}
    for kind in odd:
        check_option("odd", kind, ODD)
    for label in range(classes):
        synset = f"n{label:08d}"
        for split, count in splits.items():
            if not count:
                continue
            place = root / split / synset
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = _draw(label, classes, seed_of("sample", seed, split, label, i))
                (place / f"{synset}_{i}.JPEG").write_bytes(_encode(image))
        for kind in list(odd)[label::classes]:
            image = _draw(label, classes, seed_of("sample", seed, kind))
            (root / "train" / synset / f"{synset}_odd_{kind}.JPEG").write_bytes(_make_odd(image, kind))
    return root


def _draw(label: int, classes: int, seed: int) -> Image.Image:
    chance = np.random.default_rng(seed)
    width, height = SIZES[chance.integers(len(SIZES))]
    y, x = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    angle = math.pi * (label + chance.uniform(-0.25, 0.25)) / classes
    wave = 2 * math.pi / (min(width, height) * chance.uniform(0.08, 0.16))
    phase = chance.uniform(0, 2 * math.pi)
    across, down = wave * math.cos(angle), wave * math.sin(angle)
    # sin(a x + b y + phase) by short vectors: the sine of a sum
    stripes = np.sin(across * x + phase) * np.cos(down * y) + np.cos(across * x + phase) * np.sin(down * y)
    hue = (label + chance.uniform(-0.3, 0.3)) / classes
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, 0.5, 0.6), dtype=np.float32) * 255
    pixels = colour + (stripes * np.float32(chance.uniform(25, 60)))[..., None]
    cx, cy, radius = chance.uniform(0, width), chance.uniform(0, height), 0.2 * min(width, height)
    pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = chance.uniform(0, 255, 3)
    coarse = chance.normal(0, 40, (height // 16 + 1, width // 16 + 1, 1)).astype(np.float32)
    pixels += coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _make_odd(image: Image.Image, kind: str) -> bytes:
    if kind == "empty":
        return b""
    if kind == "text":
        return b"<html>429 Too Many Requests</html>\n"
    if kind == "truncated":
        content = _encode(image)
        return content[: len(content) // 2]
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        return _encode(image, exif=exif)
    if kind == "cmyk":
        return _encode(image.convert("CMYK"))
    if kind == "grey":
        return _encode(image.convert("L"))
    if kind == "transparent":
        image = image.convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return _encode(image.quantize(64) if kind == "palette" else image, "PNG", compress_level=1)


def _encode(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 92} if form == "JPEG" else {}), **options)
    return buffer.getvalue()

"""A small tree of image files in the layout of ImageNet, drawn, not photographed: for tests and trial runs."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from resid._arguments import check_option
from resid.data.batches import seed_of

__all__ = ["BROKEN", "ODD", "write_sample_tree"]

SIZES = ((500, 375), (375, 500), (500, 500), (333, 500), (640, 480), (160, 120))
BROKEN = ("truncated", "empty", "text")
ODD = ("cmyk", "grey", "png", *BROKEN)


def write_sample_tree(
    folder: str | Path, classes: int = 4, per_class: int = 20, val: int = 5, seed: int = 0, odd: Collection[str] = ()
) -> Path:
    """Write train/n00000000/n00000000_0.JPEG and so on, and val likewise: noisy gratings, a direction for each class.

    Args:
        folder: made if missing.
        classes: how many; each has a direction and a colour of its own.
        per_class: training images of each class.
        val: images of each class in val.
        seed: of all that is drawn.
        odd: kinds of odd files, one each, added to the training images of the classes by turns as
            CLASS_odd_KIND.JPEG: "cmyk", "grey", "png", and three that cannot be read, "truncated", "empty", "text".

    Returns:
        the folder.

    Raises:
        OptionError: an unknown kind.
    """
    for kind in odd:
        check_option("odd", kind, ODD)
    for label in range(classes):
        names = [f"{split}/{i}" for split, count in (("train", per_class), ("val", val)) for i in range(count)]
        for name in names + [f"train/odd_{kind}" for kind in list(odd)[label::classes]]:
            split, _, number = name.partition("/")
            path = Path(folder, split, f"n{label:08d}", f"n{label:08d}_{number}.JPEG")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = _draw(label / classes, classes, np.random.default_rng(seed_of("sample", seed, label, name)))
            path.write_bytes(_encode(image, number.removeprefix("odd_")))
    return Path(folder)


def _draw(turn: float, classes: int, chance: np.random.Generator) -> Image.Image:
    width, height = SIZES[chance.integers(len(SIZES))]
    y, x = np.ogrid[:height, :width]
    angle = math.pi * (turn + chance.uniform(-0.25, 0.25) / classes)
    wave = 2 * math.pi / (min(width, height) * chance.uniform(0.08, 0.16))
    stripes = np.sin(wave * (x * math.cos(angle) + y * math.sin(angle)) + chance.uniform(0, 6))
    colour = np.array(colorsys.hsv_to_rgb(turn, 0.5, 0.6)) * 255
    noise = chance.normal(0, 40, (height // 16 + 1, width // 16 + 1, 1)).repeat(16, 0).repeat(16, 1)[:height, :width]
    pixels = colour + chance.uniform(25, 60) * stripes[..., None] + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, kind: str) -> bytes:
    image, buffer = image.convert({"cmyk": "CMYK", "grey": "L"}.get(kind, "RGB")), io.BytesIO()
    image.save(buffer, "PNG" if kind == "png" else "JPEG")
    content = buffer.getvalue()
    return {"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html></html>"}.get(kind, content)

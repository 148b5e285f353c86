"""Decoding against slow twins: whole images as arrays, resized by a triangle filter written out."""

import io
import math
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resid.data.decode import (
    BrokenImageError,
    Window,
    cut,
    decode_test,
    decode_train,
    draw_window,
    open_image,
    orientation,
    reduce_jpeg,
)
from resid.errors import SizeError


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width, height, seed=0):
    """Smooth, with every row and column of its own."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def weights(old, new):
    """(new, old): a triangle as wide as a new pixel, or as an old one if that is wider; rows sum to 1."""
    scale = old / new
    width = max(scale, 1.0)
    places = (np.arange(new) + 0.5) * scale
    near = np.clip(1 - np.abs(np.arange(old) + 0.5 - places[:, None]) / width, 0, None)
    return near / near.sum(1, keepdims=True)


def resized(pixels, width, height):
    """(h, w, 3) -> (height, width, 3), float."""
    rows = np.einsum("yh,hwc->ywc", weights(pixels.shape[0], height), pixels.astype(float), optimize=True)
    return np.einsum("xw,ywc->yxc", weights(pixels.shape[1], width), rows, optimize=True)


def apart(found, expected):
    """Largest difference of (3, s, s) bytes from (s, s, 3) numbers."""
    assert found.dtype == torch.uint8
    return float(np.abs(found.permute(1, 2, 0).numpy() - expected).max())


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 7, 32]), st.integers(0, 50))
def test_crop_flip_and_resize_are_those_of_the_whole_image(width, height, size, seed):
    image = picture(width, height, seed)
    left, top, w, h, flip = draw_window(width, height, seed)
    expected = resized(np.asarray(image)[top : top + h, left : left + w], size, size)
    found = decode_train(encode(image), size, seed)
    assert found.shape == (3, size, size)
    assert apart(found, expected[:, ::-1] if flip else expected) <= 1.01  # a byte is rounded after each direction


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_the_middle_of_the_whole_image(width, height, seed):
    image = picture(width, height, seed)
    w, h = (20, int(20 * height / width)) if width <= height else (int(20 * width / height), 20)
    top, left = int(round((h - 17) / 2)), int(round((w - 17) / 2))  # noqa: RUF046
    expected = resized(np.asarray(image), w, h)[top : top + 17, left : left + 17]
    assert apart(decode_test(encode(image), 17, 20), expected) <= 1.01


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_reduced_jpegs_are_the_whole_ones_within_a_level(denominator):
    image = picture(611, 467)
    content = encode(image, "JPEG", quality=95, subsampling=0)
    full = np.asarray(Image.open(io.BytesIO(content)))
    rng = random.Random(denominator)
    for _ in range(5):
        size = rng.randint(20, 28)
        w, h = (rng.randint(size * denominator, min(size * denominator * 2 - 1, 467)) for _ in "wh")
        left, top = rng.randint(0, 611 - w), rng.randint(0, 467 - h)
        expected = resized(full[top : top + h, left : left + w], size, size)
        found = cut(open_image(content), Window(left, top, w, h, False), size)
        mean = np.abs(found.permute(1, 2, 0).numpy() - expected).mean()
        assert mean < 1
        aside = left - denominator if left >= denominator else left + denominator  # one pixel of the reduced image
        moved = resized(full[top : top + h, aside : aside + w], size, size)
        assert np.abs(found.permute(1, 2, 0).numpy() - moved).mean() > 2 * mean


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20))
def test_a_jpeg_is_reduced_as_far_as_it_may_be_and_no_further(width, height, most):
    content = encode(Image.new("RGB", (width, height)), "JPEG")
    image = open_image(content)
    most = min(most, width, height)
    scale = reduce_jpeg(image, most)
    assert scale == max(s for s in (1, 2, 4, 8) if s <= max(1, most))
    assert image.size == (-(-width // scale), -(-height // scale))


def test_windows_are_those_of_the_published_rule():
    for seed in range(300):
        chance = random.Random(seed)
        width, height = chance.choice([(500, 375), (333, 500), (700, 100), (30, 29)])
        draws = random.Random(seed)
        flip = draws.random() < 0.5
        expected = None
        for _ in range(10):
            target = height * width * draws.uniform(0.08, 1.0)
            aspect = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = int(round(math.sqrt(target * aspect))), int(round(math.sqrt(target / aspect)))  # noqa: RUF046
            u, v = draws.random(), draws.random()
            if 0 < w <= width and 0 < h <= height:
                expected = (math.floor(u * (width - w + 1)), math.floor(v * (height - h + 1)), w, h, flip)
                break
        if expected is not None:
            assert draw_window(width, height, seed) == expected
    assert draw_window(500, 375, 3, flip=False).flip is False


def test_windows_have_the_distribution_of_the_rule():
    found = [draw_window(2000, 2000, seed) for seed in range(4000)]
    area = np.array([w.width * w.height for w in found]) / 2000**2
    ratio = np.log([w.width / w.height for w in found]) / math.log(4 / 3)
    assert 0.079 < area.min() < 0.085
    assert area.max() < 1.001
    assert np.abs(np.histogram(area, 5, (0.08, 0.8))[0] / np.histogram(area, 1, (0.08, 0.8))[0] - 0.2).max() < 0.03
    assert np.abs(np.histogram(ratio, 4, (-1, 1))[0] / 4000 - 0.25).max() < 0.04
    assert abs(np.mean([w.flip for w in found]) - 0.5) < 0.04
    place = [w.left / (2000 - w.width) for w in found if w.width < 1900]
    assert np.abs(np.histogram(place, 4, (0, 1))[0] / len(place) - 0.25).max() < 0.04
    corner = {draw_window(3, 3, seed)[:2] for seed in range(500)}
    assert corner == {(x, y) for x in range(3) for y in range(3)}, "the last place, too"


@pytest.mark.parametrize(
    ("size", "window"),
    [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((100, 1), (49, 0, 1, 1)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_nothing_fits_the_middle_is_taken(size, window):
    assert draw_window(*size, 5)[:4] == window


def flat(mode, colour):
    return Image.new(mode, (20, 16), colour)


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encode(flat("L", 70)), (70, 70, 70)),
        (encode(flat("L", 70), "JPEG", quality=100), (70, 70, 70)),
        (encode(flat("1", 1)), (255, 255, 255)),
        (encode(flat("LA", (70, 255))), (70, 70, 70)),
        (encode(flat("LA", (55, 51))), (215, 215, 215)),  # 55/5 + 255*4/5
        (encode(flat("RGBA", (10, 20, 30, 255))), (10, 20, 30)),
        (encode(flat("RGBA", (0, 100, 255, 0))), (255, 255, 255)),
        (encode(flat("RGBA", (5, 105, 255, 51))), (205, 225, 255)),
        (encode(flat("RGB", (9, 8, 7)).quantize(4)), (9, 8, 7)),
        (encode(flat("RGB", (9, 8, 7)).quantize(4), transparency=b"\0" * 4), (255, 255, 255)),
        (encode(flat("RGB", (9, 8, 7)), transparency=(9, 8, 7)), (255, 255, 255)),
        (encode(flat("L", 9), transparency=8), (9, 9, 9)),
        (encode(flat("CMYK", (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
        (encode(flat("CMYK", (51, 102, 0, 51)), "JPEG", quality=100), (163, 122, 204)),  # (1 - c)(1 - k)
        (encode(flat("I;16", 257 * 90)), (90, 90, 90)),
        (encode(flat("I;16", 65535)), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_its_colours(content, colour):
    for found in (decode_test(content, 8, 10), decode_train(content, 8, 0)):
        assert found.shape == (3, 8, 8)
        assert int((found.int() - torch.tensor(colour)[:, None, None]).abs().max()) <= 1


def test_orientation_stays_as_stored():
    image = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, stored = encode(image, "JPEG", exif=exif), encode(image, "JPEG")
    assert turned != stored
    assert torch.equal(decode_test(turned, 16, 20), decode_test(stored, 16, 20))
    assert torch.equal(decode_train(turned, 16, 3), decode_train(stored, 16, 3))
    assert orientation(open_image(turned)) == 6
    assert orientation(open_image(stored)) == 1
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"):
        odd = encode(image, "JPEG", exif=exif)
        assert orientation(open_image(odd)) == 1
        assert torch.equal(decode_test(odd, 16, 20), decode_test(stored, 16, 20))


def bomb(width, height):
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html></html>", "not an image"),
        (encode(picture(99, 99), "JPEG")[:900], "truncated"),
        (encode(picture(99, 99))[:900], "truncated"),
        (bomb(11_000, 10_000), "11000 x 10000 pixels are more than 100,000,000"),
        (bomb(60_000, 60_000), "decompression bomb"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (encode(Image.new("I", (4, 4), 70_000), "TIFF"), "pixels from 70000 to 70000"),
    ],
)
def test_broken_files_have_a_reason(content, reason):
    for decode in (lambda: decode_test(content, 8, 8), lambda: decode_train(content, 8, 0)):
        with pytest.raises(BrokenImageError, match=reason):
            decode()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_damage_of_any_kind_gives_an_image_or_the_named_error(form):
    content = encode(picture(60, 50), form)
    rng = random.Random(form)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randrange(1, 20)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            outcomes.add(decode_train(bytes(damaged), 8, 0).shape)
        except BrokenImageError:
            outcomes.add("broken")
    assert "broken" in outcomes
    assert outcomes <= {"broken", (3, 8, 8)}


def test_sizes_of_no_use():
    with pytest.raises(SizeError, match="size = 0"):
        decode_train(b"", 0, 0)
    with pytest.raises(SizeError, match="side = 7"):
        decode_test(b"", 8, 7)

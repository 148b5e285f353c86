"""Image files: listed in order, decoded as slow twins say, each once and with the same bits however one gets there."""

import io
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from resid.book.experiments.sample_images import BROKEN, ODD, write_sample_tree
from resid.data import imagenet
from resid.data.batches import draw_order, pixel_statistics, seed_of
from resid.data.imagenet import (
    IGNORED,
    ImageBatches,
    TooManyBrokenError,
    WorkerDiedError,
    decode_test,
    decode_train,
    draw_window,
    open_images,
)
from resid.data.official import DataFileError
from resid.errors import InterruptedRunError, OptionError, SizeError

RAW = (torch.zeros(3), torch.ones(3))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("tree"), classes=3, per_class=8, val=2, odd=ODD)


@pytest.fixture
def own(tmp_path):
    """Images that a test may delete."""
    return write_sample_tree(tmp_path / "own", classes=3, per_class=8, val=1)


def make(files, batch=7, seed=3, **options):
    return ImageBatches(files, batch, seed, "dataset", *RAW, **{"size": 16, "side": 18, **options})


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.size == b.size
        for a, b in zip(found, expected, strict=True)
    )


# --- files ---


def test_files_are_those_of_the_sorted_class_folders(tmp_path, monkeypatch):
    for synset in ("n00000010", "n00000002", "n00000001"):
        for name in ("b.png", "a.JPEG", "c.jpg", "notes.txt"):
            place = tmp_path / "train" / synset
            place.mkdir(parents=True, exist_ok=True)
            (place / name).touch()
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "README.JPEG").touch()
    os.mkfifo(tmp_path / "train" / "n00000001" / "pipe.JPEG")  # which nobody may ever write to
    scan = os.scandir

    class Backwards(list):
        """File systems give any order."""

        def __init__(self, path):
            super().__init__(sorted(scan(path), key=lambda entry: entry.name, reverse=True))

        def __enter__(self):
            return iter(self)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    files = open_images("train", tmp_path)
    assert files.classes == ("n00000001", "n00000002", "n00000010")
    names = [f"train/{synset}/{name}" for synset in files.classes for name in ("a.JPEG", "b.png", "c.jpg")]
    assert [files.name(i) for i in range(len(files))] == names
    assert files.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    few = files.subset(torch.tensor([4, 8]))
    assert ([few.name(i) for i in range(2)], few.labels.tolist()) == ([names[4], names[8]], [1, 2])


def test_slips_of_a_layout_are_named(own, tmp_path, monkeypatch):
    monkeypatch.delenv("RESID_IMAGENET", raising=False)
    with pytest.raises(DataFileError, match="no folder of images is given: RESID_IMAGENET has to name one"):
        open_images()
    with pytest.raises(DataFileError, match="nowhere is not a folder: RESID_IMAGENET"):
        open_images("train", tmp_path / "nowhere")
    with pytest.raises(DataFileError, match=r"own/train/val has no class folders"):
        open_images("test", own / "train")
    shutil.move(own / "val" / "n00000002", own / "val" / "n00000003")
    for split in ("train", "test"):
        with pytest.raises(DataFileError, match="class 'n00000002' is not in both, train and val"):
            open_images(split, own)
    shutil.rmtree(own / "val")
    assert len(open_images("train", own)) == 24
    for path in (own / "train" / "n00000001").iterdir():
        path.unlink()
    with pytest.raises(DataFileError, match="n00000001 has no image"):
        open_images("train", own)


# --- decoding ---


def save(path, image, form="PNG", **options):
    image.save(path, form, **options)
    return path


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


def differences(pixels, expected):
    """Of (3, s, s) bytes from (s, s, 3) numbers."""
    assert pixels.dtype == torch.uint8
    return np.abs(pixels.permute(1, 2, 0).numpy() - expected)


SIZES = [(1, 1), (1, 70), (70, 1), (90, 33), (33, 90), (61, 60), (17, 20), (8, 9)]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crops_are_those_of_the_whole_image(width, height, form, tmp_path):
    options = {"lossless": True} if form == "WEBP" else {}
    image = picture(width, height)
    path = save(tmp_path / "image", image, form, **options)
    for seed in range(4):
        left, top, w, h, flipped = draw_window(width, height, seed)
        expected = resized(np.asarray(image)[top : top + h, left : left + w], 16, 16)
        found = decode_train(path, 16, seed)
        assert found.shape == (3, 16, 16)  # a byte is rounded after each direction
        assert differences(found, expected[:, ::-1] if flipped else expected).max() <= 1.01
    w, h = (20, int(20 * height / width)) if width <= height else (int(20 * width / height), 20)
    top, left = int(round((h - 17) / 2)), int(round((w - 17) / 2))  # noqa: RUF046
    expected = resized(np.asarray(image), w, h)[top : top + 17, left : left + 17]
    assert differences(decode_test(path, 17, 20), expected).max() <= 1.01


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_reduced_jpegs_are_the_whole_ones_within_a_level(denominator, tmp_path, monkeypatch):
    path = save(tmp_path / "image", picture(611, 467), "JPEG", quality=95, subsampling=0)
    full = np.asarray(Image.open(path))
    rng = random.Random(denominator)
    reduced, scales = imagenet._reduce, []
    monkeypatch.setattr(imagenet, "_reduce", lambda *given: scales.append(reduced(*given)) or scales[-1])
    for _ in range(5):
        size = rng.randint(20, 28)
        w, h = (rng.randint(size * denominator, min(size * denominator * 2 - 1, 467)) for _ in "wh")
        left, top = rng.randint(0, 611 - w), rng.randint(0, 467 - h)
        monkeypatch.setattr(imagenet, "draw_window", lambda *_, window=(left, top, w, h, False): window)
        found = decode_train(path, size, 0)
        mean = differences(found, resized(full[top : top + h, left : left + w], size, size)).mean()
        assert mean < 1
        aside = left - denominator if left >= denominator else left + denominator  # one pixel of the reduced image
        assert differences(found, resized(full[top : top + h, aside : aside + w], size, size)).mean() > 2 * mean
    assert scales == [denominator] * 5


def test_windows_are_those_of_the_published_rule():
    for seed in range(300):
        width, height = random.Random(seed).choice([(500, 375), (333, 500), (700, 100), (30, 29)])
        draws = random.Random(seed)
        flip, expected = draws.random() < 0.5, None
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
    assert draw_window(500, 375, 3)[4] != draw_window(500, 375, 3, flip=False)[4]
    for size, window in (((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))):
        assert draw_window(*size, 5)[:4] == window, "where nothing fits the middle is taken"


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("L", 70, "PNG", (70, 70, 70)),
        ("L", 70, "JPEG", (70, 70, 70)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (70, 9), "PNG", (70, 70, 70)),
        ("RGBA", (10, 20, 30, 255), "PNG", (10, 20, 30)),
        ("P", 9, "GIF", (9, 9, 9)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("CMYK", (51, 102, 0, 51), "JPEG", (163, 122, 204)),  # (1 - c)(1 - k)
    ],
)
def test_every_mode_becomes_its_colours(mode, colour, form, expected, tmp_path):
    image = Image.new(mode, (20, 16), colour)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    path = save(tmp_path / "image", image, form, **({"quality": 100} if form == "JPEG" else {}))
    for found in (decode_test(path, 8, 10), decode_train(path, 8, 0)):
        assert int((found.int() - torch.tensor(expected)[:, None, None]).abs().max()) <= 1


def test_orientation_stays_as_stored(tmp_path):
    image, exif = picture(40, 30), Image.Exif()
    exif[0x0112] = 6
    stored = decode_test(save(tmp_path / "stored", image, "JPEG"), 16, 20)
    for header in (exif, b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"):
        assert torch.equal(decode_test(save(tmp_path / "turned", image, "JPEG", exif=header), 16, 20), stored)


# --- batches ---


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch", [9, 30, 100])
def test_an_epoch_has_each_sample_once(tree, batch, ranks):
    files = open_images("train", tree)  # 30
    parts = [list(make(files, batch, rank=rank, ranks=ranks).epoch(2)) for rank in range(ranks)]
    alone = list(make(files, batch).epoch(2))
    assert {len(part) for part in parts} == {len(alone)} == {-(-30 // batch)}
    for i, whole in enumerate(alone):
        assert {part[i].size for part in parts} == {len(whole.labels)} == {sum(len(part[i].labels) for part in parts)}
        for rank, part in enumerate(parts):
            assert torch.equal(part[i].images, whole.images[rank::ranks])
            assert torch.equal(part[i].labels, whole.labels[rank::ranks])
    broken = torch.tensor([any(kind in files.name(i) for kind in BROKEN) for i in range(30)])
    expected = files.labels.masked_fill(broken, IGNORED)[draw_order(30, 3, 2)]
    assert torch.equal(torch.cat([b.labels for b in alone]), expected)
    plain = [list(make(files, 8, rank=rank, ranks=ranks).plain()) for rank in range(ranks)]
    assert sum(b.size for part in plain for b in part) == 30
    for rank, part in enumerate(plain):
        assert torch.equal(torch.cat([b.labels for b in part]), files.labels.masked_fill(broken, IGNORED)[rank::ranks])


def test_samples_are_cropped_by_seed_epoch_and_number(tree):
    files = open_images("test", tree)
    paths = [tree / files.name(i) for i in range(6)]
    for epoch in (0, 5):
        images = torch.cat([batch.images for batch in make(files, 4).epoch(epoch)])
        for image, i in zip(images, draw_order(6, 3, epoch).tolist(), strict=True):
            assert torch.equal(image, decode_train(paths[i], 16, seed_of("window", 3, epoch, i)).float())
    plain = torch.cat([batch.images for batch in make(files, 4).plain()])
    assert torch.equal(plain, torch.stack([decode_test(path, 16, 18) for path in paths]).float())


def test_the_same_bits_after_a_resume_and_for_any_workers(tree):
    files = open_images("train", tree)
    state = torch.get_rng_state()
    alone = make(files, 5)
    whole = list(alone.epoch(1))
    assert len(whole) == 6
    assert not same(whole, list(make(files, 5).epoch(2)))
    assert same(list(make(files, 5).epoch(1, 4)), whole[4:])
    assert same(list(make(files, 5).epoch(1, 2, 4)), whole[2:4])
    batches = make(files, 5, workers=2)
    assert same(list(batches.epoch(1)), whole)
    begun = batches.epoch(0)  # left in its middle, what was prepared is thrown away
    assert len(next(begun).labels) == 5
    assert len(multiprocessing.active_children()) == 2
    assert same(list(batches.epoch(1, 4)), whole[4:])
    begun.close()
    assert not multiprocessing.active_children()
    assert same(list(batches.plain()), list(make(files, 5).plain()))
    assert batches.broken == alone.broken
    assert len(alone.broken) == 3
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the generator of all"


def test_broken_files_are_named_and_move_nothing(tree):
    files = open_images("train", tree)
    batches = ImageBatches(files, 30, 3, size=16, side=18)
    ((images, labels, _),) = batches.epoch(4)
    assert {name.rpartition("_")[2] for name in batches.broken} == {f"{kind}.JPEG" for kind in BROKEN}
    for name, reason in batches.broken.items():
        assert reason.startswith(
            "OSError: image file is truncated" if "truncated" in name else "UnidentifiedImageError"
        )
    for image, label, i in zip(images, labels.tolist(), draw_order(30, 3, 4).tolist(), strict=True):
        assert label == (IGNORED if files.name(i) in batches.broken else int(files.labels[i]))
        assert (float(image.abs().max()) == 0) == (label == IGNORED), "zeros after normalisation"
    loss = torch.nn.functional.cross_entropy(torch.zeros(30, 3), labels, reduction="sum")
    assert float(loss) == pytest.approx(27 * math.log(3))
    assert files.labels.min() >= 0, "the labels themselves stay"


def bomb(width, height):
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def encoded(image, form):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(picture(99, 99), "PNG")[:900], "OSError: .*truncated"),
        (bomb(11_000, 10_000), "DecompressionBombWarning: Image size .110000000 pixels"),
        (bomb(60_000, 60_000), "DecompressionBombError: "),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "ValueError: pixels of mode F: 8 bits are needed"),
        (encoded(Image.new("I;16", (4, 4), 70), "PNG"), "ValueError: pixels of mode I;16: 8 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "UnidentifiedImageError"),
        (None, "FileNotFoundError: "),
    ],
    ids=["truncated", "large", "larger", "float", "16 bits", "postscript", "deleted"],
)
def test_files_of_no_use_have_a_reason(own, content, reason):
    files = open_images("train", own)
    path = own / files.name(5)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    batches = make(files, 24)
    for labels in (next(batches.plain()).labels, next(batches.epoch(0)).labels):
        assert int((labels == IGNORED).sum()) == 1
    ((name, told),) = batches.broken.items()
    assert name == files.name(5)
    assert re.match(reason, told), told


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_damage_of_any_kind_gives_an_image_or_a_reason(form, tmp_path):
    content, rng = encoded(picture(60, 50), form), random.Random(form)
    place = tmp_path / "train" / "n"
    place.mkdir(parents=True)
    for i in range(60):
        damaged = bytearray(content[: rng.choice([len(content), rng.randrange(len(content))])])
        for _ in range(rng.randrange(1, 20)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (place / f"{i}.JPEG").write_bytes(damaged)
    decoder = imagenet._Decoder(open_images("train", tmp_path), 0, 8, 8, True)
    _, labels, broken, _ = decoder[0, torch.arange(60), 60]
    assert 0 < len(broken) == int((labels == IGNORED).sum())
    assert all(broken.values())


def test_too_many_broken_files_are_an_error(own):
    files = open_images("train", own)
    whole = (own / files.name(6)).read_bytes()
    for i in range(6):
        (own / files.name(i)).write_bytes(b"")
    with pytest.raises(TooManyBrokenError, match=r"6 of 24 files cannot be decoded, 5 may be: train/n00000000/n0"):
        list(make(files, 24).epoch(0))
    (own / files.name(5)).write_bytes(whole)
    few = make(files, 8)
    assert [len(list(few.epoch(epoch))) for epoch in range(3)] == [3, 3, 3], "a file counts once, not once an epoch"
    assert len(few.broken) == 5


def test_a_worker_that_is_killed(own):
    files = open_images("train", own)
    batches = make(files, 1, workers=2)
    stream = batches.epoch(0)
    next(stream)
    victim = multiprocessing.active_children()[-1].pid
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match="ended before its time: ") as caught:
        list(stream)
    assert time.monotonic() - began < 15
    assert isinstance(caught.value, InterruptedRunError), "another try may help"
    assert same(list(batches.epoch(0)), list(make(files, 1).epoch(0))), "others take over"


def test_an_error_of_the_code_is_not_taken_for_a_dead_worker(own):
    batches = make(open_images("train", own), 5, workers=1)
    batches._decoder = Failing()
    with pytest.raises(RuntimeError, match="wrong by design") as caught:
        list(batches.epoch(0))
    assert not isinstance(caught.value, WorkerDiedError)


class Failing:
    def __getitem__(self, key):
        raise RuntimeError("wrong by design")


def test_pixels_are_normalised_as_asked(tree):
    files = open_images("test", tree)
    raw = torch.cat([batch.images for batch in make(files, 6).plain()])
    (fixed,) = ImageBatches(files, 6, 0, size=16, side=18).plain()
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (raw[:, channel].double() / 255 - mean) / std
        assert float((fixed.images[:, channel] - expected).abs().max()) < 1e-5
    (own,) = ImageBatches(files, 6, 0, "dataset", *pixel_statistics(raw.to(torch.uint8)), size=16, side=18).plain()
    assert float(own.images.mean((0, 2, 3)).abs().max()) < 1e-5
    (each,) = ImageBatches(files, 6, 0, "image", size=16, side=18, channels_last=True).plain()
    assert float(each.images.mean((1, 2, 3)).abs().max()) < 1e-5
    assert each.images.is_contiguous(memory_format=torch.channels_last)
    assert fixed.images.is_contiguous()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": -1}, SizeError, "workers = -1"),
        ({"size": 0}, SizeError, "size = 0"),
        ({"size": 6, "side": 5}, SizeError, "side = 5"),
        ({"batch": 23, "ranks": 2}, OptionError, "a batch of 1 cannot be shared by 2 ranks"),
        ({"normalize": "none"}, OptionError, "normalize = 'none'"),
    ],
)
def test_options_of_no_use(own, options, error, message):
    with pytest.raises(error, match=message):
        ImageBatches(open_images("train", own), **{"batch": 5, "seed": 0, **options})

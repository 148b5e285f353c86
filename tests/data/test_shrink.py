"""Shrunk copies: the same classes and labels, smaller images, whole files whatever happens."""

import errno
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resid.book.experiments.sample_images import ODD, write_sample_tree
from resid.data.decode import BrokenImageError, open_image, orientation
from resid.data.download import DataFileError
from resid.data.image_files import open_images
from resid.data.images_cli import main
from resid.data.shrink import shrink_image, shrink_images
from resid.errors import OptionError, SizeError
from resid.training.checkpoint import BusyError, hold
from tests.data.test_decode import encode, picture, resized
from tests.data.test_image_files import rows_of, write_parquet


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("tree"), classes=2, per_class=3, val=1, odd=ODD)


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_copy_has_the_same_classes_labels_and_smaller_images(tree, tmp_path):
    told = []
    done = shrink_images(tree, tmp_path / "out", 100, say=lambda *numbers: told.append(numbers))
    assert (done.written, done.before, len(done.broken)) == (6 + 6 + 2, 0, 3)
    assert told[-1] == (17, 17)
    for split in ("train", "val"):
        ours, theirs = open_images(tmp_path / "out", split), open_images(tree, split)
        assert ours.classes == theirs.classes
        kept = {theirs.name(i): i for i in range(len(theirs)) if theirs.name(i) not in done.broken}
        assert [ours.name(i) for i in range(len(ours))] == list(kept)
        for i, j in enumerate(kept.values()):
            assert ours.labels[i] == theirs.labels[j]
            small, large = open_image(ours.read(i)), open_image(theirs.read(j))
            ratio = max(large.size) / min(large.size)
            assert min(small.size) == 100
            assert max(small.size) == round(100 * ratio)
            assert small.format == "JPEG"
            assert orientation(small) == orientation(large) == (6 if "turned" in ours.name(i) else 1)
            assert small.mode == ("L" if "grey" in ours.name(i) else "RGB")
    assert sorted(name.rpartition("_")[2] for name in done.broken) == ["empty.JPEG", "text.JPEG", "truncated.JPEG"]
    assert shrink_images(tree, tmp_path / "out", 100).before == 14


def test_pixels_are_those_of_the_image():
    image = picture(400, 300)
    found = np.asarray(Image.open(io.BytesIO(shrink_image(encode(image, "JPEG", quality=95), 60, 95))))
    expected = resized(np.asarray(image), 80, 60)
    assert np.abs(found - expected).mean() < 2
    moved = np.roll(expected, 1, 1)
    assert np.abs(found - moved).mean() > 4
    small = shrink_image(encode(image, "JPEG"), 60, 30)
    assert len(small) < len(shrink_image(encode(image, "JPEG"), 60, 95)) / 2
    for content in (encode(image, "JPEG"), encode(image)):
        assert shrink_image(content, 300) == content == shrink_image(content, None)
    for side in (None, 10):
        with pytest.raises(BrokenImageError, match="truncated"):
            shrink_image(encode(image, "JPEG")[:2000], side)


def test_parquet_files_are_unpacked_as_they_are(tree, tmp_path):
    files = open_images(tree, "val")
    rows = rows_of(files)
    done = shrink_images(write_parquet(tmp_path / "in", rows, "validation", 1), tmp_path / "out", None)
    assert done.written == 2
    copy = open_images(tmp_path / "out", "val")
    assert copy.classes == files.classes
    assert sorted((copy.read(i), int(v)) for i, v in enumerate(copy.labels)) == sorted((b, v) for b, _, v in rows)
    assert copy.name(0) == "val/n00000000/n00000000_0_n00000000.JPEG"


@pytest.mark.parametrize("path", [None, "same.JPEG", ".hidden"])
def test_labels_stay_where_names_are_not_in_order(tree, tmp_path, path):
    files = open_images(tree, "val")
    rows = [(b, path, v) for b, _, v in rows_of(files) for _ in range(2)]
    names = ["tench, Tinca/tinca", "goldfish"]  # sorted, they would be the other way round
    shrink_images(write_parquet(tmp_path / "in", rows, "validation", 1, names), tmp_path / "out", None)
    copy = open_images(tmp_path / "out", "val")
    assert copy.classes == ("0 tench, Tinca_tinca", "1 goldfish")
    assert sorted((copy.read(i), int(v)) for i, v in enumerate(copy.labels)) == sorted((b, v) for b, _, v in rows)


def test_a_killed_copy_goes_on(tmp_path):
    tree = write_sample_tree(tmp_path / "in", classes=2, per_class=60, val=1)
    command = [
        sys.executable,
        "-m",
        "resid.data.images_cli",
        "shrink",
        str(tree),
        str(tmp_path / "out"),
        "--side",
        "90",
    ]
    child = subprocess.Popen([*command, "--workers", "0"], stdout=subprocess.DEVNULL)
    place, ends = tmp_path / "out" / "train" / "n00000000", time.monotonic() + 60
    while len(list(place.glob("*.JPEG"))) < 5:
        assert child.poll() is None, "it was to be killed before its end"
        assert time.monotonic() < ends
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (place / "n00000000_1.JPEG.99.tmp").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.JPEG")}
    assert 5 <= len(before) < 122
    done = shrink_images(tree, tmp_path / "out", 90, workers=2)
    assert (done.before, done.written, done.broken) == (len(before), 122 - len(before), {})
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert not list(tmp_path.rglob("*.tmp"))
    shrink_images(tree, tmp_path / "alone", 90)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_settings_of_a_copy_stay(tree, tmp_path):
    shrink_images(tree, tmp_path, 100)
    for options in ({"side": 101}, {"side": 100, "quality": 80}, {"side": None}):
        with pytest.raises(OptionError, match="was begun with"):
            shrink_images(tree, tmp_path, **options)
    assert json.loads((tmp_path / "shrink.json").read_text())["side"] == 100
    with (tmp_path / "lock").open("a") as lock:
        hold(lock, tmp_path)
        with pytest.raises(BusyError, match="another process is writing"):
            shrink_images(tree, tmp_path, 100)
    with pytest.raises(OptionError, match="is the folder of the images itself"):
        shrink_images(tree, tree / ".." / tree.name)
    with pytest.raises(OptionError, match="quality = 96"):
        shrink_images(tree, tmp_path, quality=96)
    with pytest.raises(SizeError, match="side = 0"):
        shrink_images(tree, tmp_path, 0)


def test_a_full_disk_is_said(tree, tmp_path, monkeypatch, capsys):
    write = Path.write_bytes
    calls = []

    def full(path, content):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr("resid.data.shrink.write_whole", full)
    with pytest.raises(DataFileError, match=r"JPEG cannot be written: the disk is full; \d+ of 17 images are there"):
        shrink_images(tree, tmp_path / "out", 100)
    assert main(["shrink", str(tree), str(tmp_path / "out"), "--side", "100", "--workers", "0"]) == 65
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["shrink", str(tree), str(tmp_path / "out"), "--side", "100", "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "10 images written, 4 were there, 3 left out" in shown
    assert "the file is empty" in shown
